//! Measures the rate and the loss that the `udp` engine alone reaches: runs both of its ends in one process over
//! loopback, without the connection (link) over which the two programs control a test. Prints the results of each
//! direction, and does not judge them.
//!
//! `udp_loopback [download|upload|bidir] [STREAMS] [SECONDS] [BITRATE] [PAYLOAD]`
//!
//! BITRATE is the rate of each stream in bits per second; with 0, the engine searches for the highest rate. PAYLOAD is
//! the number of payload bytes in a datagram.

use std::error::Error;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use paramedic_engines::dialer::Dialer;
use paramedic_engines::engine::{ClientSetup, PhaseProgress, ServerSetup};
use paramedic_engines::origin::Origin;
use paramedic_engines::session_control::SessionControl;
use paramedic_engines::udp_port::UdpPort;
use paramedic_link::SessionId;
use paramedic_link::admission::SessionKeys;
use paramedic_link::measurement::{DatagramTally, PhaseTally, Sample};
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_report::stats;

fn keys() -> Arc<SessionKeys> {
    Arc::new(SessionKeys::derive(SessionId::from_bytes([1; 16]), [1; 32].into()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let arg = |at: usize, default: &'static str| args.get(at).map_or(default, String::as_str).to_owned();
    let load = match arg(0, "download").as_str() {
        "upload" => Load::Upload,
        "bidir" => Load::Bidir,
        _ => Load::Download,
    };
    let phases = vec![PhaseSpec { load, duration_ms: (arg(2, "5").parse::<f64>()? * 1000.0) as u32 }];
    let spec = TestSpec {
        bitrate_bps: Some(arg(3, "0").parse()?),
        block_bytes: Some(arg(4, "1400").parse()?),
        ..TestSpec::new(EngineId::try_from("udp")?, DataMode::Tunneled, phases, arg(1, "1").parse()?)
    };
    let engine = paramedic_host::engines::find("udp").ok_or("this program has no engine `udp`")?;
    let port = UdpPort::spawn(UdpSocket::bind("127.0.0.1:0")?)?;
    let at = port.local_addr();
    let control = SessionControl::unmetered();
    let server = engine.server(ServerSetup {
        spec: spec.clone(),
        keys: keys(),
        claim: None,
        peer: at.ip(),
        control: Arc::clone(&control),
        scratch: std::env::temp_dir(),
    })?;
    let handlers = server.datagram_handler().into_iter().collect();
    let _enrolment = port.enroll(keys().session(), control, at.ip(), handlers);
    let client = engine.client(ClientSetup {
        spec: spec.clone(),
        keys: keys(),
        dialer: Arc::new(Dialer {
            target: at,
            tls: None,
            origin: Origin::default(),
            connect_timeout: Duration::from_secs(5),
        }),
        control: SessionControl::unmetered(),
        terms: None,
        scratch: std::env::temp_dir(),
    })?;
    let (start, started) = channel();
    let (count, counted) = channel();
    let counted_too = count.clone();
    let (served, driven) = std::thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let served = scope.spawn(move || {
            server.run(0, &|progress| match progress {
                PhaseProgress::Started => start.send(()).unwrap_or(()),
                PhaseProgress::Received(direction, sample) => counted_too.send((direction, sample)).unwrap_or(()),
                PhaseProgress::Sent(..) | PhaseProgress::Detail(..) => {}
            })
        });
        client.connect(0)?;
        started.recv()?;
        let driven = client.run(0, &|progress| {
            if let PhaseProgress::Received(direction, sample) = progress {
                let _ = count.send((direction, sample));
            }
        });
        Ok((served.join().map_err(|_| "the reflector's end panicked")?, driven))
    })?;
    let samples = counted.try_iter().collect::<Vec<_>>();
    for direction in load.directions() {
        let (sender, receiver) = match direction {
            Direction::Download => (&served, &driven),
            Direction::Upload => (&driven, &served),
        };
        let samples = samples.iter().filter(|(of, _)| of == direction).map(|(_, sample)| *sample).collect::<Vec<_>>();
        print_line(*direction, sender, receiver, &samples, spec.phases[0].duration());
    }
    Ok(())
}

fn print_line(direction: Direction, sender: &PhaseTally, receiver: &PhaseTally, samples: &[Sample], span: Duration) {
    let (Some(sent), Some(received)) = (sender.direction(direction), receiver.direction(direction)) else { return };
    let of_sender = sent.datagrams.as_deref().copied().unwrap_or_default();
    let of_receiver = received.datagrams.as_deref().copied().unwrap_or_default();
    let loss = |sent: Option<u64>, received: Option<u64>| Some(1.0 - received? as f64 / sent? as f64);
    let settled = of_receiver.settled_at_us.map(Duration::from_micros);
    let steady = stats::throughput(samples, settled, span);
    let cpu = sent.cpu.user_s + sent.cpu.system_s + received.cpu.user_s + received.cpu.system_s;
    println!(
        "{direction} {:.3} Gbit/s, settled after {settled:?} with loss {:?}, whole loss {:?}, {:.3} CPU s/GB, busiest {:.2} and {:.2}, {:?}",
        steady.map_or(0.0, |steady| steady.goodput_bps as f64 / 1e9),
        loss(of_sender.settled, of_receiver.settled),
        loss(of_sender.sent, of_receiver.received),
        cpu / (received.count.bytes as f64 / 1e9),
        sent.cpu.busiest_thread,
        received.cpu.busiest_thread,
        sender.cut_short.as_ref().or(receiver.cut_short.as_ref()),
    );
    let told = |end: DatagramTally| println!("  {end:?}");
    told(of_sender);
    told(of_receiver);
    if std::env::var_os("INTERVALS").is_some() {
        let rates = samples.iter().map(|sample| sample.bytes * 80 / 1_000_000).collect::<Vec<_>>();
        println!("  Mbit/s {rates:?}");
    }
}
