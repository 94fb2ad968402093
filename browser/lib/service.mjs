// Starts the real programs on free ports of loopback, each with a state folder of its own, and ends them.
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const bin = process.env.BIN;
/** The password of the administrator. */
export const PASSWORD = "correct horse battery";

/** A running program. Its lines can be awaited; `stop` ends it. */
class Program {
  constructor(name, command, args, env) {
    this.name = name;
    this.log = "";
    this.child = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    this.child.stderr.on("data", (text) => (this.log += text));
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
    this.ended = new Promise((resolve) => this.child.on("exit", resolve));
  }

  /** The first match of `pattern` in the next lines. */
  async line(pattern) {
    for (;;) {
      const { value, done } = await this.lines.next();
      if (done) {
        throw new Error(`${this.name} ended: ${this.log}`);
      }
      const found = pattern.exec(value);
      if (found) {
        return found;
      }
    }
  }

  async stop() {
    this.child.kill("SIGTERM");
    await this.ended;
  }
}

/** The programs of a test, with everything that they need. */
export class Bench {
  /** Starts the service with these settings beside those of every test; `password: null` leaves the password unset. */
  static async start(settings = {}) {
    const bench = await Bench.prepare(settings);
    await bench.serve();
    return bench;
  }

  /** Everything but the service. */
  static async prepare(settings = {}) {
    const bench = new Bench();
    bench.folder = await mkdtemp(join(tmpdir(), "pages-"));
    const folder = (name) => join(bench.folder, name);
    bench.env = {
      PATH: process.env.PATH,
      HOME: bench.folder,
      TZ: "UTC",
      REFLECTOR_STATE_DIR: folder("reflector"),
      REFLECTOR_RUNTIME_DIR: folder("reflector-run"),
      PACKETPARAMEDIC_STATE_DIR: folder("appliance"),
      PACKETPARAMEDIC_RUNTIME_DIR: folder("appliance-run"),
      PACKETPARAMEDIC_LISTEN: "127.0.0.1:0",
      // Long enough to be watched, short enough for a gate.
      PACKETPARAMEDIC_DURATION: "2s",
      // A test probes nothing outside of loopback.
      PACKETPARAMEDIC_DEFAULT_MONITORS: "false",
      PACKETPARAMEDIC_NAME: "the appliance",
      ...settings,
    };
    if (settings.password !== null) {
      await writeFile(folder("password"), PASSWORD);
      bench.env.PACKETPARAMEDIC_ADMIN_PASSWORD_FILE = folder("password");
    }
    delete bench.env.password;
    bench.programs = [];
    return bench;
  }

  /** Starts the service. */
  async serve() {
    this.service = this.spawn("the service", "packetparamedic", ["serve"]);
    [, this.url] = await this.service.line(/serving on (http\S+)/);
  }

  spawn(name, command, args) {
    return this.spawnPath(name, join(bin, command), args);
  }

  spawnPath(name, path, args, env = this.env) {
    const program = new Program(name, path, args, env);
    this.programs.push(program);
    return program;
  }

  /** Starts the reflector. */
  async reflector() {
    const reflector = this.spawn("the reflector", "reflector", ["serve", "--listen", "127.0.0.1:0"]);
    [, this.address] = await reflector.line(/listening on (\S+)/);
  }

  /** A pairing code of the reflector. */
  async code() {
    const pairing = this.spawn("the pairing", "reflector", ["pair", "--json", "--name", "the appliance"]);
    const [, code] = await pairing.line(/"code": ?"([^"]+)"/);
    return code;
  }

  /** What a command of the appliance prints. */
  async command(...args) {
    return this.output(this.spawn(args[0], "packetparamedic", args));
  }

  /** What a program prints until it ends. */
  async output(program) {
    let text = "";
    for (let next = await program.lines.next(); !next.done; next = await program.lines.next()) {
      text += `${next.value}\n`;
    }
    const exit = await program.ended;
    if (exit !== 0) {
      throw new Error(`${program.name}: exit ${exit}: ${program.log}`);
    }
    return text;
  }

  /** Pairs with the reflector from the command line. */
  async pair(name = "attic") {
    await this.reflector();
    const code = await this.code();
    await writeFile(join(this.folder, "code"), code);
    await this.command("pair-reflector", "--peer", this.address, "--code-file", join(this.folder, "code"), "--name", name);
  }

  /** Another appliance, with a store of its own, paired with the same reflector. The answer spawns its commands. */
  async otherAppliance() {
    const name = "another appliance";
    const env = {
      ...this.env,
      PACKETPARAMEDIC_STATE_DIR: join(this.folder, "other"),
      PACKETPARAMEDIC_RUNTIME_DIR: join(this.folder, "other-run"),
      PACKETPARAMEDIC_NAME: name,
    };
    const spawnOther = (...args) => this.spawnPath(name, join(bin, "packetparamedic"), args, env);
    const file = join(this.folder, "other-code");
    await writeFile(file, await this.code());
    await this.output(spawnOther("pair-reflector", "--peer", this.address, "--code-file", file));
    return spawnOther;
  }

  async stop() {
    for (const program of this.programs.reverse()) {
      if (program.child.exitCode === null && program.child.signalCode === null) {
        await program.stop();
      }
    }
    await rm(this.folder, { recursive: true, force: true });
  }
}
