//! Runs both ends of the `tcp` engine in one process, over loopback and without a link, to show what the engine itself
//! can do. Prints one line per direction and does not judge the rates. `script/bench` compares the engines with iperf3.
//!
//! `tcp_loopback [direct|tunneled] [download|upload|bidir] [STREAMS] [SECONDS] [CONGESTION_CONTROL]`

use std::error::Error;

use paramedic_engines::loopback;
use paramedic_engines::tcp::Tcp;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load, PhaseSpec, TestSpec};

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
    let both = loopback::run(&Tcp, &spec, std::env::temp_dir())?;
    for direction in load.directions() {
        let (sender, receiver) = both.sender_and_receiver(*direction);
        print_line(*direction, sender, receiver);
    }
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
