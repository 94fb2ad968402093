//! Both ends of the `tcp` engine in one process, over loopback and without a link: what the engine itself can do.
//! Prints one line. It never judges the number; `script/bench` does, beside other tools.
//!
//! `tcp_loopback [direct|tunneled] [download|upload|bidir] [STREAMS] [SECONDS] [CONGESTION_CONTROL]`

use std::error::Error;
use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use paramedic_engines::data_stream::DataStream;
use paramedic_engines::dialer::Dialer;
use paramedic_engines::engine::{DriveOrder, Progress, Serve, ServeOrder};
use paramedic_engines::origin::Origin;
use paramedic_engines::tether::Tether;
use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_link::tls::{self, Alpn, Expect};
use paramedic_link::{SecretKey, SessionId};
use rustls::{ClientConfig, ServerConfig, ServerConnection};
use zeroize::Zeroizing;

fn keys() -> Arc<SessionKeys> {
    Arc::new(SessionKeys::derive(SessionId::from_bytes([1; 16]), Zeroizing::new([1; 32])))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let arg = |at: usize, default: &'static str| args.get(at).map_or(default, String::as_str).to_owned();
    let data_mode = if arg(0, "direct") == "tunneled" { DataMode::Tunneled } else { DataMode::DirectEphemeral };
    let load = match arg(1, "download").as_str() {
        "upload" => Load::Upload,
        "bidir" => Load::Bidir,
        _ => Load::Download,
    };
    let phases = vec![PhaseSpec { load, duration_ms: (arg(3, "5").parse::<f64>()? * 1000.0) as u32 }];
    let spec = TestSpec::new(EngineId::try_from("tcp")?, data_mode, phases, arg(2, "1").parse()?);
    let spec = TestSpec { congestion_control: args.get(4).cloned(), ..spec };
    let engine = paramedic_engines::find("tcp").ok_or("no such engine")?;
    // A port that is free now; nobody else wants it for the moment until it is claimed.
    let control = TcpListener::bind("127.0.0.1:0")?;
    let at = control.local_addr()?;
    let mut client = None;
    let direct = data_mode == DataMode::DirectEphemeral;
    let control = (!direct).then_some(control);
    let serve: Arc<dyn Serve> = Arc::from(engine.open(ServeOrder {
        spec: spec.clone(),
        keys: keys(),
        claim: direct.then_some(at),
        peer: at.ip(),
        tether: Tether::free(),
        scratch: std::env::temp_dir(),
    })?);
    if let Some(control) = control {
        let (server, of_appliance) = configs()?;
        client = Some(of_appliance);
        let serve = Arc::clone(&serve);
        std::thread::spawn(move || while admit(&control, &server, &*serve).is_ok() {});
    }
    let drive = engine.drive(DriveOrder {
        spec,
        keys: keys(),
        dialer: Arc::new(Dialer {
            target: at,
            tls: client,
            origin: Origin::default(),
            connect_timeout: Duration::from_secs(5),
        }),
        tether: Tether::free(),
        login: None,
        scratch: std::env::temp_dir(),
    })?;
    let (start, started) = channel();
    let (served, driven) = std::thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let served = scope.spawn(|| {
            serve.run(0, &|progress| {
                if progress == Progress::Started {
                    let _ = start.send(());
                }
            })
        });
        drive.connect(0)?;
        started.recv()?;
        let driven = drive.run(0, &|_| ());
        Ok((served.join().map_err(|_| "the reflector's end panicked")?, driven))
    })?;
    for direction in load.directions() {
        let (sender, receiver) = match direction {
            Direction::Download => (&served, &driven),
            Direction::Upload => (&driven, &served),
        };
        print_line(*direction, sender, receiver);
    }
    Ok(())
}

fn configs() -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), Box<dyn Error>> {
    let (ours, theirs) = (SecretKey::generate()?, SecretKey::generate()?);
    let client = tls::appliance_config(&ours, Expect::ExactKey(theirs.id()), Alpn::Data)?;
    Ok((tls::reflector_config(&theirs)?, client))
}

/// Takes one data connection as a reflector's control port does.
fn admit(control: &TcpListener, config: &Arc<ServerConfig>, serve: &dyn Serve) -> Result<(), Box<dyn Error>> {
    let (mut socket, _) = control.accept()?;
    let mut connection = ServerConnection::new(Arc::clone(config))?;
    let mut preamble = [0; Preamble::LEN];
    rustls::Stream::new(&mut connection, &mut socket).read_exact(&mut preamble)?;
    let preamble = Preamble::open(&preamble, &keys()).ok_or("not our preamble")?;
    serve.admit(preamble, DataStream::tls(connection.into(), socket)?);
    Ok(())
}

fn print_line(direction: Direction, sender: &PhaseTally, receiver: &PhaseTally) {
    let (Some(sent), Some(received)) = (sender.direction(direction), receiver.direction(direction)) else { return };
    let seconds = received.count.elapsed_us as f64 / 1e6;
    let gbit = received.count.bytes as f64 * 8.0 / seconds / 1e9;
    let cpu = sent.cpu.user_s + sent.cpu.system_s + received.cpu.user_s + received.cpu.system_s;
    let cut_short = sender.cut_short.as_ref().or(receiver.cut_short.as_ref());
    println!(
        "{direction} {gbit:.2} Gbit/s, {} bytes sent, {} received, {:.3} CPU s/GB, {:?}, {:?} to {:?}, busiest {:.2} and {:.2}, {:?}",
        sent.count.bytes,
        received.count.bytes,
        cpu / (received.count.bytes as f64 / 1e9),
        sent.congestion_control,
        sent.data_path,
        received.data_path,
        sent.cpu.busiest_thread,
        received.cpu.busiest_thread,
        cut_short,
    );
}
