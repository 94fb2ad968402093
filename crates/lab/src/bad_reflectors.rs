//! Reflectors that break the protocol: a table of scripts, each of which is run against the real appliance.
//!
//! Such a reflector follows the protocol up to one [`Stage`], and then does one [`Act`]. Most scripts are combinations
//! of a stage and an act; the others send a message with a single wrong field.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use paramedic_link::pairing_code::PairingCode;
use serde_json::{Value, json};

use crate::hostile::{AsReflector, FalseReflector};
use crate::{Appliance, Outcome};

/// Text with escape sequences, a bell, control characters and a bidirectional override.
pub const NASTY: &str = "\u{1b}[31mred\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}drawkcab\r\nlast";

/// How long the appliance waits for an answer, whatever else the reflector sends.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the appliance waits in a queue that does not move: 60 s plus twice the longest test, which is 1 ms in
/// [`welcome`].
const QUEUE_STALL: Duration = Duration::from_secs(60);

/// The duration of the requested test.
const ASKED: Duration = Duration::from_secs(1);

/// The limit of the appliance's writable memory, in bytes (`RLIMIT_DATA`). An appliance that needs more fails.
const MOST_MEMORY: u64 = 512 << 20;

/// How long a reflector repeats the same message: longer than the appliance may take. So a test of an appliance that
/// waits for the end of the messages fails instead of hanging.
const FOREVER: Duration = Duration::from_secs(120);

/// The arguments of the speed test against each script: one stream at a low rate.
pub const SPEED_TEST: &[&str] = &["speed-test", "-t", "1", "-P", "1", "-b", "1M", "--upload", "--probe-interval", "0"];

/// The point at which a reflector starts to break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The reflector receives the first message: `hello` or `pair`.
    First,
    /// The appliance requests the facts of the reflector's host.
    Facts,
    /// The appliance requests a session.
    Request,
    /// The request is queued.
    Queue,
    /// The appliance sends the `start` of a phase.
    Start,
    /// A phase runs.
    Phase,
    /// The appliance sends the `finish` of the session.
    Finish,
    /// The appliance sends the `finish` of a direct session whose data port is closed, because it wants to repeat the
    /// session through the tunnel.
    FallBack,
}

const STAGES: [Stage; 8] = [
    Stage::First,
    Stage::Facts,
    Stage::Request,
    Stage::Queue,
    Stage::Start,
    Stage::Phase,
    Stage::Finish,
    Stage::FallBack,
];

/// What a reflector does when it breaks the protocol. Afterwards it sends nothing more.
#[derive(Clone)]
pub enum Act {
    /// The reflector sends nothing.
    Silence,
    /// The reflector closes the connection.
    HangUp,
    /// The reflector sends these bytes once.
    Bytes(Vec<u8>),
    /// The reflector sends these bytes and closes the connection.
    LastBytes(Vec<u8>),
    /// The reflector sends one message.
    Say(Value),
    /// The reflector repeats one message at this interval; with zero, as fast as the appliance reads.
    Forever(Value, Duration),
}

/// One way in which a reflector breaks the protocol.
#[derive(Clone)]
pub struct Script {
    /// The description of the script, unique in the table.
    pub name: String,
    /// The stage at which the reflector breaks the protocol.
    pub stage: Stage,
    /// What the reflector does at this stage.
    pub act: Act,
    /// Arguments for the appliance in addition to [`SPEED_TEST`].
    pub more: &'static [&'static str],
    /// How long the appliance's command may take.
    pub within: Duration,
    /// The exit code that a speed test must have; `None` if several are right.
    pub exit: Option<i32>,
}

/// The appliance's command that is run against a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `speed-test` with its text report.
    SpeedTest,
    /// `speed-test --json`.
    SpeedTestJson,
    /// `pair-reflector --code`.
    Pair,
    /// `pair-reflector --endpoint-id`.
    PairById,
    /// `reflectors check`.
    Check,
}

/// The result of running a command against a script.
#[derive(Debug)]
pub struct Played {
    /// How the command ended.
    pub outcome: Outcome,
    /// How long the command took.
    pub took: Duration,
}

/// A reflector that follows the protocol.
#[derive(Debug, Default)]
pub struct Honest {
    durations_ms: Vec<u64>,
    has_closed_port: bool,
}

impl Honest {
    /// Creates a reflector that also offers direct mode, with a data port that is closed.
    pub fn with_closed_port() -> Self {
        Self { has_closed_port: true, ..Self::default() }
    }

    /// The stage that begins when an appliance sends `message`; `None` if the message begins no stage.
    fn stage(message: &Value) -> Option<Stage> {
        Some(match message["type"].as_str()? {
            "hello" | "pair" => Stage::First,
            "facts" => Stage::Facts,
            "request" => Stage::Request,
            "start" => Stage::Start,
            "finish" => Stage::Finish,
            _ => return None,
        })
    }

    /// Answers `message` as the protocol requires.
    pub fn answer(&mut self, link: &mut AsReflector, message: &Value) -> io::Result<()> {
        match message["type"].as_str().unwrap_or_default() {
            "hello" if self.has_closed_port => {
                link.say(&with(welcome(), "/data_modes", json!(["tunneled", "direct_ephemeral"])))
            }
            "hello" => link.say(&welcome()),
            "pair" => link.say(&json!({ "type": "not_paired" })),
            "facts" => link.say(&json!({ "type": "facts", "version": "1.0.0" })),
            "request" => {
                self.note_request(message);
                if message["spec"]["data_mode"] == "direct_ephemeral" {
                    return link.say(&with(granted(), "/data_port", json!(1)));
                }
                link.say(&granted())
            }
            "start" => {
                let phase = message["phase"].as_u64().unwrap_or_default();
                link.say(&started(phase))?;
                self.run(link, phase)
            }
            "finish" => link.say(&json!({ "type": "ended", "reason": "finished", "detail": "done" })),
            "ping" => link.say(&json!({ "type": "pong" })),
            _ => Ok(()),
        }
    }

    /// Stores the durations of the phases that a request asks for.
    pub fn note_request(&mut self, request: &Value) {
        let phases = request["spec"]["phases"].as_array().into_iter().flatten();
        self.durations_ms = phases.filter_map(|phase| phase["duration_ms"].as_u64()).collect();
    }

    /// Reports a phase of 400 kbit/s, which is a lower rate than the appliance sends with [`SPEED_TEST`].
    fn run(&self, link: &mut AsReflector, phase: u64) -> io::Result<()> {
        let intervals = self.durations_ms.get(usize::try_from(phase).unwrap_or_default()).unwrap_or(&0) / 100;
        for at in 1..=intervals {
            std::thread::sleep(Duration::from_millis(100));
            link.say(&samples(phase, at * 100_000, 5_000))?;
        }
        link.say(
            &json!({ "type": "phase_done", "phase": phase, "tally": tally(intervals * 5_000, intervals * 100_000) }),
        )
    }
}

/// Builds a valid `welcome`.
pub fn welcome() -> Value {
    json!({
        "type": "welcome", "version": 1, "software": "1.0.0", "name": "stage", "data_modes": ["tunneled"],
        "engines": ["tcp"], "max_streams": 64, "max_duration_ms": 1,
    })
}

/// Builds a valid `granted`.
pub fn granted() -> Value {
    let session = "0193aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
    json!({ "type": "granted", "session": session, "expires_in_ms": 60_000, "udp": false })
}

/// Builds a `queued` with this place in the queue.
pub fn queued(place: u64) -> Value {
    json!({ "type": "queued", "place": place, "expected_wait_ms": 1000 })
}

fn started(phase: u64) -> Value {
    json!({ "type": "started", "phase": phase })
}

fn samples(phase: u64, at_us: u64, bytes: u64) -> Value {
    json!({ "type": "samples", "phase": phase, "direction": "upload", "samples": [{ "at_us": at_us, "bytes": bytes }] })
}

fn tally(bytes: u64, elapsed_us: u64) -> Value {
    json!({ "upload": {
        "count": { "bytes": bytes, "elapsed_us": elapsed_us },
        "cpu": { "user_s": 0.1, "system_s": 0.1, "busiest_thread": 0.1 },
        "streams": 1,
    } })
}

/// Replaces or adds one field of the message `claim`; `path` is a JSON pointer.
fn with(mut claim: Value, path: &str, value: Value) -> Value {
    if let Some(field) = claim.pointer_mut(path) {
        *field = value;
    } else if let Some((parent, name)) = path.rsplit_once('/')
        && let Some(parent) = claim.pointer_mut(parent)
    {
        parent[name] = value;
    }
    claim
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes(), body].concat()
}

/// Returns every script.
pub fn scripts() -> Vec<Script> {
    let crossed = STAGES
        .into_iter()
        .flat_map(|stage| acts().into_iter().map(move |(name, act)| new(format!("{name} at {stage:?}"), stage, act)));
    crossed.chain(claims()).chain(queues()).collect()
}

/// Returns a part of the table that runs in half a minute: every message with a wrong field, and every act at one
/// stage, chosen so that each stage occurs.
pub fn few_scripts() -> Vec<Script> {
    let few = scripts().into_iter().enumerate().filter(|(at, script)| {
        let acts = acts().len();
        let is_crossed = *at < STAGES.len() * acts;
        let is_chosen = at % acts % STAGES.len() == at / acts;
        // Scripts in which the reflector stalls run at every stage.
        let stalls = matches!(script.act, Act::Silence) || script.name.starts_with("pings ");
        (!is_crossed || is_chosen || stalls) && script.within < Duration::from_secs(40)
    });
    few.map(|(_, script)| script).collect()
}

fn new(name: String, stage: Stage, act: Act) -> Script {
    // In a queue the appliance waits as long as the reflector sends messages. Otherwise it waits for one answer, and
    // the duration of the phase is added.
    let is_queue = stage == Stage::Queue && matches!(act, Act::Forever(..));
    let within = if is_queue { QUEUE_STALL } else { ANSWER_TIMEOUT } + ASKED;
    Script { name, stage, act, more: &[], within, exit: None }
}

/// The acts that are tried at every stage.
fn acts() -> Vec<(&'static str, Act)> {
    let often = Duration::from_millis(200);
    let ping = json!({ "type": "ping" });
    let text = |body: &str| Act::Bytes(frame(body.as_bytes()));
    vec![
        ("silence", Act::Silence),
        ("pings", Act::Forever(ping.clone(), often)),
        ("a flood of pings", Act::Forever(ping, Duration::ZERO)),
        ("pongs", Act::Forever(json!({ "type": "pong" }), often)),
        ("unknown messages", Act::Forever(json!({ "type": NASTY, "detail": NASTY }), often)),
        ("a hang-up", Act::HangUp),
        ("HTTP", Act::Bytes(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec())),
        ("0xff", Act::Bytes(vec![0xff; 5000])),
        ("an empty frame", text("")),
        ("a frame too long", Act::Bytes((16 * 1024 + 1u32).to_be_bytes().to_vec())),
        ("half a length", Act::LastBytes(vec![0, 0])),
        ("half a frame", Act::LastBytes(frame(&[b' '; 100])[..24].to_vec())),
        ("half a frame and silence", Act::Bytes(frame(&[b' '; 100])[..24].to_vec())),
        ("no JSON", text("welcome")),
        ("deep JSON", Act::Bytes(frame(&b"[".repeat(16 * 1024)))),
        ("two messages in a frame", text(r#"{"type":"ping"}{"type":"ping"}"#)),
        ("a message without a type", text("{}")),
        ("a type that is a number", text(r#"{"type":7}"#)),
        ("no text in UTF-8", Act::Bytes(frame(b"{\"type\":\"\xff\xfe\"}"))),
        ("not paired", Act::Say(json!({ "type": "not_paired" }))),
        ("an unexpected grant", Act::Say(with(granted(), "/expires_in_ms", json!(u64::MAX)))),
        ("an unexpected phase", Act::Say(started(7))),
        ("an end with escapes", Act::Say(json!({ "type": "ended", "reason": NASTY, "detail": NASTY }))),
        ("a close with escapes", Act::Say(json!({ "type": "close", "reason": NASTY, "detail": NASTY }))),
        ("a denial with escapes", Act::Say(denied(NASTY))),
    ]
}

fn denied(reason: &str) -> Value {
    json!({ "type": "denied", "reason": reason, "detail": NASTY, "retry_after_ms": u64::MAX })
}

/// The scripts that send a message with one wrong field.
fn claims() -> Vec<Script> {
    let many = |n: usize, value: &str| json!(vec![value; n]);
    let say = |name: &str, stage, claim| new(name.to_owned(), stage, Act::Say(claim));
    let welcomes = [
        ("a welcome of another version", "/version", json!(2)),
        ("a welcome of a negative version", "/version", json!(-1)),
        ("a welcome with 1,000 engines", "/engines", many(1000, "tcp")),
        ("a welcome with an engine that is none", "/engines", json!([NASTY])),
        ("a welcome with 17 data modes", "/data_modes", many(17, "tunneled")),
        ("a welcome that offers nothing", "/data_modes", json!([])),
        ("a welcome with text for numbers", "/max_streams", json!("64")),
        ("a welcome with the longest test of all", "/max_duration_ms", json!(u64::MAX)),
        ("a welcome with a test beyond numbers", "/max_duration_ms", json!(1e40)),
        ("a welcome with escapes", "/software", json!(NASTY)),
        ("a welcome with a long name", "/name", json!(NASTY.repeat(300))),
        ("a welcome with 33 features", "/features", many(33, "x")),
        ("a welcome with features with escapes", "/features", json!([NASTY])),
    ];
    let facts = [
        ("facts with escapes", "/cpu_model", json!(NASTY)),
        ("facts beyond numbers", "/load_1m", json!(1e308)),
        ("facts with negative memory", "/memory_total_bytes", json!(-5)),
        ("facts of the wrong type", "/cpus", json!([[[]]])),
    ];
    let grants = [
        ("a grant with a session with escapes", "/session", json!(NASTY)),
        ("a grant for no time", "/expires_in_ms", json!(0)),
        ("a grant of port 0", "/data_port", json!(0)),
        ("a grant of port 70,000", "/data_port", json!(70_000)),
        ("a grant of a closed port", "/data_port", json!(1)),
        ("a grant with a login", "/login", json!({ "key": NASTY, "padding": NASTY })),
    ];
    let done = |tally| json!({ "type": "phase_done", "phase": 0, "tally": tally });
    let most = u64::MAX;
    let tallies = [
        ("a tally of every byte there is", done(tally(most, 1_000_000))),
        ("a tally that took for ever", done(tally(100, most))),
        ("a tally in no time", done(tally(100, 0))),
        ("a tally of more than was sent", done(tally(1 << 40, 1_000_000))),
        ("a negative tally", done(with(tally(1, 1), "/upload/count/bytes", json!(-1)))),
        ("a tally beyond numbers", done(with(tally(1, 1), "/upload/cpu/user_s", json!(1e308)))),
        ("an empty tally", done(json!({}))),
        ("a tally with a data path with escapes", done(with(tally(1, 1), "/upload/data_path", json!(NASTY)))),
        ("a tally with escapes", done(json!({ "cut_short": NASTY }))),
        ("a tally of another phase", with(done(tally(1, 1)), "/phase", json!(200))),
    ];
    let often = Duration::from_millis(100);
    let forever = |name: &str, message| new(name.to_owned(), Stage::Phase, Act::Forever(message, often));
    let readings = [
        say("a sample of every byte there is", Stage::Phase, samples(0, 100_000, most)),
        say("a sample at the end of time", Stage::Phase, samples(0, most, 100)),
        say(
            "65 samples",
            Stage::Phase,
            with(samples(0, 1, 1), "/samples", json!(vec![json!({"at_us": 1, "bytes": 1}); 65])),
        ),
        forever("samples without end", samples(0, 100_000, 100)),
        forever("samples of another phase", samples(9, 100_000, 100)),
        forever("samples of the other direction", with(samples(0, 100_000, 100), "/direction", json!("download"))),
        forever("begins without end", started(0)),
    ];
    let of = |stage, base: fn() -> Value| {
        move |(name, path, value): (&str, &str, Value)| say(name, stage, with(base(), path, value))
    };
    let mut all = welcomes.map(of(Stage::First, welcome)).to_vec();
    all.extend(facts.map(of(Stage::Facts, || json!({ "type": "facts", "version": "1.0.0" }))));
    all.extend(grants.map(of(Stage::Request, granted)));
    all.extend(tallies.map(|(name, claim)| say(name, Stage::Phase, claim)));
    all.extend(readings);
    // Messages about a session that do not end it.
    let news = [
        ("samples without end instead of an end", samples(0, 100_000, 100)),
        ("begins without end instead of an end", started(0)),
        ("tallies without end instead of an end", done(tally(1, 1))),
    ];
    all.extend(news.map(|(name, message)| Script {
        exit: Some(1),
        ..new(name.to_owned(), Stage::FallBack, Act::Forever(message, often))
    }));
    all.push(say(
        "a pairing with a wrong proof",
        Stage::First,
        json!({ "type": "paired", "proof": "00".repeat(32), "name": NASTY }),
    ));
    all.push(say("a pairing without a proof", Stage::First, json!({ "type": "paired", "name": NASTY })));
    for script in &mut all {
        // Counts that cannot be true must not become part of a result.
        let is_refused = ["every byte", "took for ever", "in no time", "more than was sent"];
        if is_refused.iter().any(|part| script.name.contains(part)) {
            script.exit = Some(1);
        }
    }
    all
}

/// The scripts with a queue that does not move.
fn queues() -> Vec<Script> {
    let often = Duration::from_millis(200);
    let forever = |name: &str, message| new(name.to_owned(), Stage::Queue, Act::Forever(message, often));
    let until = |seconds, script: Script| Script { within: Duration::from_secs(seconds), ..script };
    let wait =
        |script: Script| Script { more: &["--wait", "2s"], within: Duration::from_secs(3), exit: Some(5), ..script };
    vec![
        wait(forever("the same place for ever, and two seconds to wait", queued(3))),
        wait(forever("a later place for ever, and two seconds to wait", queued(u64::from(u32::MAX)))),
        wait(forever("pings in the queue, and two seconds to wait", json!({ "type": "ping" }))),
        Script { exit: Some(5), ..forever("the same place for ever", queued(3)) },
        Script { exit: Some(1), ..until(10, new("silence in the queue".to_owned(), Stage::Queue, Act::Silence)) },
        new("no place at all".to_owned(), Stage::Request, Act::Say(queued(1 << 40))),
        new(
            "a wait beyond numbers".to_owned(),
            Stage::Queue,
            Act::Say(with(queued(1), "/expected_wait_ms", json!(1e300))),
        ),
    ]
}

impl Script {
    /// Starts a reflector that follows the protocol until `is_armed` is set, and then the script.
    pub fn reflector(&self, is_armed: Arc<AtomicBool>) -> FalseReflector {
        let (stage, act) = (self.stage, self.act.clone());
        FalseReflector::listen(move |link, first| {
            let mut honest = if stage == Stage::FallBack { Honest::with_closed_port() } else { Honest::default() };
            let mut next = Some(first.clone());
            while let Some(message) = next {
                match Honest::stage(&message) {
                    _ if !is_armed.load(Ordering::SeqCst) => honest.answer(link, &message)?,
                    Some(now) if now == stage => return act.perform(link),
                    Some(Stage::Finish) if stage == Stage::FallBack => return act.perform(link),
                    Some(Stage::Request) if stage == Stage::Queue => {
                        link.say(&queued(2))?;
                        return act.perform(link);
                    }
                    Some(Stage::Start) if stage == Stage::Phase => {
                        link.say(&started(message["phase"].as_u64().unwrap_or_default()))?;
                        return act.perform(link);
                    }
                    _ => honest.answer(link, &message)?,
                }
                next = link.hear()?;
            }
            Ok(())
        })
    }

    /// The commands to run against the script: those that reach its stage.
    pub fn asked(&self) -> &'static [Asked] {
        match self.stage {
            Stage::First => &[Asked::SpeedTest, Asked::Pair, Asked::PairById, Asked::Check],
            _ => &[Asked::SpeedTest, Asked::SpeedTestJson],
        }
    }

    /// Runs a command of a newly created appliance against the script.
    pub fn play(&self, asked: Asked) -> Played {
        let is_armed = Arc::new(AtomicBool::new(false));
        let reflector = self.reflector(Arc::clone(&is_armed));
        let (address, id) = (reflector.address.to_string(), reflector.id.to_string());
        let appliance = Appliance::new();
        let pair_by_id = ["pair-reflector", "--peer", &address, "--endpoint-id", &id];
        let code = PairingCode::generate(&reflector.id).expect("a code").to_string();
        let pair = ["pair-reflector", "--peer", &address, "--code", &code];
        if !matches!(asked, Asked::Pair | Asked::PairById) {
            let paired = appliance.run(&pair_by_id);
            assert_eq!(paired.code, 0, "{paired:?}");
        }
        is_armed.store(true, Ordering::SeqCst);
        let args = match asked {
            Asked::SpeedTest => [SPEED_TEST, self.more].concat(),
            Asked::SpeedTestJson => [SPEED_TEST, self.more, &["--json"]].concat(),
            Asked::Pair => pair.to_vec(),
            Asked::PairById => pair_by_id.to_vec(),
            Asked::Check => vec!["reflectors", "check"],
        };
        let began = Instant::now();
        let output = appliance.command_within(MOST_MEMORY, &args).stdin(Stdio::null()).output();
        Played { outcome: output.expect("the program runs").into(), took: began.elapsed() }
    }

    /// What the command did wrong; `None` if nothing. `slack` is extra time for a loaded machine.
    pub fn fault(&self, asked: Asked, played: &Played, slack: Duration) -> Option<String> {
        let Played { outcome, took } = played;
        let is_test = matches!(asked, Asked::SpeedTest | Asked::SpeedTestJson);
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        // Search for control characters, and for their escapes in JSON.
        let lower = said.to_lowercase();
        let escaped = ["\\u001b", "\\u0007", "\\u009b", "\\u202e"].into_iter().find(|escape| lower.contains(escape));
        let control = said.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        let fault = if said.contains("panicked") {
            "it panicked".to_owned()
        } else if !(0..=5).contains(&outcome.code) {
            format!("it ended with {}", outcome.code)
        } else if let Some(control) = control {
            format!("it printed {control:?}")
        } else if let Some(escaped) = escaped {
            format!("it printed {escaped}")
        } else if *took > self.within + slack {
            format!("it took {took:?} instead of {:?}", self.within)
        } else if let Some(exit) = self.exit.filter(|exit| is_test && *exit != outcome.code) {
            format!("it ended with {} instead of {exit}", outcome.code)
        } else {
            return None;
        };
        Some(format!("{} ({asked:?}): {fault}\n{outcome:?}", self.name))
    }
}

impl Act {
    fn perform(&self, link: &mut AsReflector) -> io::Result<()> {
        match self {
            Self::Silence => Ok(()),
            Self::HangUp => link.hang_up(),
            Self::Bytes(bytes) => link.say_bytes(bytes),
            Self::LastBytes(bytes) => {
                link.say_bytes(bytes)?;
                link.hang_up()
            }
            Self::Say(message) => link.say(message),
            Self::Forever(message, pause) => {
                let began = Instant::now();
                while began.elapsed() < FOREVER {
                    link.say(message)?;
                    std::thread::sleep(*pause);
                }
                link.hang_up()
            }
        }
    }
}
