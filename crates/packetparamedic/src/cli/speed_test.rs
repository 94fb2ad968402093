//! `packetparamedic speed-test`: builds the request from flags and settings, runs the test, and reports how the test
//! ended.

mod early_end;
mod effects;
mod test_handle;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{Appliance, TestEvent};
use paramedic_appliance::payload_transport::PayloadTransport;
use paramedic_appliance::providers::{self, PROVIDERS, Provider};
use paramedic_appliance::reflector_client::{Family, Route};
use paramedic_appliance::request::{TestRequest, TurnWait};
use paramedic_appliance::targets::HostPort;
use paramedic_engines::Engine as _;
use paramedic_engines::echo::pacing::SHORTEST_INTERVAL;
use paramedic_engines::origin::Origin;
use paramedic_host::config::{FlagValues, Origins};
use paramedic_iperf3::Iperf3;
use paramedic_link::test_spec::{DataMode, DataPathWish, EngineId, Load, PhaseSpec, TestSpec};
use paramedic_report::document::Event;
use paramedic_report::plot::PhaseCurves;
use paramedic_report::quantity;
use paramedic_report::thresholds::Thresholds;

use super::Context;
use super::failure::{self, CommandFailure, ExitStatus};
use super::output::{OutputFormat, ReaderGone};
use super::plot_file::PlotFile;
use super::provider_flags::ProviderFlags;
use super::values::{budget, bytes, code_point, data_path, milliseconds, octet, rate, share, size, time};
use crate::config::Settings;
use test_handle::{TestHandle, TestOver};

/// The default duration of the idle phase.
const IDLE: Duration = Duration::from_secs(3);
/// With `-n` but without `-t`, a direction ends after this time even if it has not moved all bytes. A longer setting
/// `duration` replaces this time.
const TIME_FOR_BYTES: Duration = Duration::from_secs(60);
/// The default number of TCP streams. A single stream often measures its congestion control instead of the line; four
/// streams fill most lines.
const TCP_STREAMS: u16 = 4;
/// The default number of datagram streams: one, as in iperf3, so that `-b` is the rate of the whole direction.
const DATAGRAM_STREAMS: u16 = 1;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The reflector to measure against (a saved name, or an address of a paired reflector), or with --provider iperf3
    /// the address of the iperf3 server [default: the only paired reflector]
    #[arg(long, value_name = "HOST[:PORT]|NAME")]
    peer: Option<String>,
    /// The same as --peer HOST, as in iperf3
    #[arg(short = 'c', long, value_name = "HOST", conflicts_with = "peer")]
    client: Option<String>,
    /// Port of the reflector or iperf3 server; the same as --peer HOST:PORT
    #[arg(short = 'p', long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Accepted for users of iperf3, without effect; an interval is always 100 ms
    #[arg(short = 'i', value_name = "SECS", hide = true)]
    _interval: Option<String>,
    /// Refused, with a hint: this program does not print iperf3's JSON format
    #[arg(short = 'J', hide = true)]
    iperf3_json: bool,
    /// The kind of server at the other end of the test
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(PROVIDERS.iter().map(|p| clap::builder::PossibleValue::new(p.id()).help(p.about()))))]
    provider: Option<String>,
    /// The test engine, which generates the load
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(paramedic_host::engines::ENGINES.iter().map(|e| clap::builder::PossibleValue::new(e.id()).help(e.about()))))]
    engine: Option<String>,
    /// How data connections are made: through the reflector's control port (tunneled), or to other ports of the
    /// reflector (direct) [default: direct if the reflector offers it]
    #[arg(long, value_name = "tunneled|direct")]
    data_mode: Option<String>,
    /// Duration of each direction: seconds, or a duration such as 500ms or 2m [default: 10]
    #[arg(short = 't', long = "time", value_name = "SECS")]
    time: Option<String>,
    /// End each direction after this many bytes of payload (the sum of all streams), such as 10M or 1G, or after the
    /// time of -t if that is sooner; with this option, -t has the default 60
    #[arg(short = 'n', long = "bytes", value_name = "SIZE", value_parser = bytes)]
    pub(super) bytes: Option<u64>,
    /// Transfer at most this many bytes of payload in the run, such as 200MB or 1GiB; each direction has an equal
    /// share, and ends when the share is used up or the time of the direction is over
    #[arg(long, value_name = "SIZE", value_parser = budget, conflicts_with = "bytes")]
    pub(super) budget: Option<u64>,
    /// End a direction after 5, 6.5 or 8 s if its rate is stable by then; cannot be combined with -t, -n, --budget, -u,
    /// iperf3 or a threshold
    #[arg(long, visible_alias = "quick")]
    pub(super) until_stable: bool,
    /// Streams for each direction, 1 to 64 [default: 4, or 1 with datagrams (-u)]
    #[arg(short = 'P', long = "parallel", value_name = "STREAMS")]
    pub(super) parallel: Option<String>,
    /// Duration of the latency measurement before any load: seconds, or a duration such as 500ms [default: 3]
    #[arg(long, value_name = "SECS", value_parser = time)]
    pub(super) idle: Option<Duration>,
    /// Exclude the first SECS of each phase from the result [default: exclude the ramp-up, whose end is detected]
    #[arg(short = 'O', long, value_name = "SECS", value_parser = time)]
    pub(super) omit: Option<Duration>,
    /// Measure only the download
    #[arg(short = 'R', long, visible_alias = "reverse", conflicts_with_all = ["upload", "bidir"])]
    pub(super) download: bool,
    /// Measure only the upload
    #[arg(long, conflicts_with = "bidir")]
    pub(super) upload: bool,
    /// Add a phase that loads both directions at once
    #[arg(long)]
    pub(super) bidir: bool,
    /// TCP congestion control algorithm of both ends, such as cubic
    #[arg(short = 'C', long, value_name = "NAME")]
    pub(super) congestion: Option<String>,
    /// Size of the socket buffers at both ends in bytes, such as 256K or 4M
    #[arg(short = 'w', long, value_name = "SIZE", value_parser = size)]
    pub(super) window: Option<u32>,
    /// Bytes per write, such as 128K; with -u, bytes of payload per datagram, such as 1400
    #[arg(short = 'l', long, value_name = "SIZE", value_parser = size)]
    pub(super) length: Option<u32>,
    /// TCP maximum segment size of both ends, in bytes
    #[arg(short = 'M', long, value_name = "BYTES")]
    pub(super) set_mss: Option<u16>,
    /// IP type of service of payload and latency probes: the whole octet, such as 184 or 0xb8, as in iperf3
    #[arg(short = 'S', long, value_name = "TOS", value_parser = octet, conflicts_with = "dscp")]
    pub(super) tos: Option<u8>,
    /// DSCP of payload and latency probes: 0 to 63, or a name such as EF, CS1, AF41
    #[arg(long, value_name = "DSCP", value_parser = code_point)]
    pub(super) dscp: Option<u8>,
    /// How the payload moves: auto (each end uses its fastest method), plain (both ends copy it between program and
    /// kernel), trunc (as plain, but the receiver discards it in the kernel), splice (as trunc, but the sender does not
    /// copy it)
    #[arg(long, value_name = "auto|plain|trunc|splice", value_parser = data_path)]
    pub(super) data_path: Option<DataPathWish>,
    /// Verify every received byte against the expected pattern
    #[arg(long)]
    pub(super) verify_payload: bool,
    /// Send UDP datagrams: with the engine udp, or with iperf3's UDP mode against an iperf3 server
    #[arg(short = 'u', long)]
    udp: bool,
    /// Allow datagrams above the path MTU (IP fragmentation)
    #[arg(long)]
    fragments: bool,
    /// With -u -b 0: find the highest rate with at most this packet loss, such as 0.5% or 0.005 [default: 1%]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    loss_bound: Option<f64>,
    /// Limit each stream to this rate in bits per second, such as 100M; 0 sets no limit, or with -u searches the
    /// highest rate [default: no limit, or 1M with -u]
    #[arg(short = 'b', long, value_name = "RATE", value_parser = rate)]
    pub(super) bitrate: Option<u64>,
    #[command(flatten)]
    provider_options: ProviderFlags,
    /// Interval between latency probes; 0 sends none
    /// [default: 10 to 300 ms, such that the probes take less than 1 % of the line's rate]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) probe_interval: Option<Duration>,
    /// Local IP address to send from
    #[arg(short = 'B', long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Local network interface to send through
    #[arg(long, visible_alias = "bind-dev", value_name = "NAME")]
    interface: Option<String>,
    /// Use only IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Do not queue: exit with code 5 if this device or the other end is busy
    #[arg(long)]
    no_wait: bool,
    /// Wait at most TIME in the queue [default: with a reflector 6 hours, or less if this device does not move up in
    /// its queue; with an iperf3 server 0]
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "no_wait")]
    wait: Option<Duration>,
    /// Add to the result the measurements of each 100 ms interval, and the TCP statistics of each stream at both ends
    #[arg(long)]
    pub(super) intervals: bool,
    /// Write a plot of throughput, latency and loss over time to FILE, as SVG; implies --intervals
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Do not draw graphs of the phases after the report (without this option, graphs are drawn on a terminal)
    #[arg(long)]
    no_graph: bool,
    /// Add iperf3's own output to the result
    #[arg(long)]
    pub(super) raw: bool,
    /// Exit with code 3 if the download is below this rate in bits per second, such as 900M or 1.5G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    min_download: Option<u64>,
    /// Exit with code 3 if the upload is below this rate in bits per second, such as 900M or 1.5G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    min_upload: Option<u64>,
    /// Exit with code 3 if the median round trip of the idle path is above this time in ms, such as 30
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    max_idle_latency: Option<f64>,
    /// Exit with code 3 if the median round trip under load is above this time in ms, such as 100
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    max_loaded_latency: Option<f64>,
    /// Exit with code 3 if the loss in either direction is above this share, such as 1% or 0.01; this is the loss of
    /// probes on the idle path, or the loss of datagrams at a fixed -b
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_loss: Option<f64>,
    /// Exit with code 3 if the loss under the test's own load is above this share, such as 1% or 0.01; this is the loss
    /// of probes, or with -u -b 0 the loss of datagrams
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_loaded_loss: Option<f64>,
    /// Do not save the result; changes nothing in the state folder
    #[arg(long)]
    no_save: bool,
    /// Print one JSON document
    #[arg(long, conflicts_with = "json_stream")]
    json: bool,
    /// Print events as they happen, one JSON document in each line; the last one is the result
    #[arg(long)]
    json_stream: bool,
}

impl Args {
    pub(super) fn format(&self) -> OutputFormat {
        match (self.json, self.json_stream) {
            (true, _) => OutputFormat::Json,
            (_, true) => OutputFormat::JsonStream,
            _ => OutputFormat::Human,
        }
    }

    /// The settings that the flags set.
    pub(super) fn settings(&self) -> FlagValues {
        let flags = [
            ("peer", "--peer", &self.peer),
            ("peer", "-c", &self.client),
            ("provider", "--provider", &self.provider),
            ("engine", "--engine", &self.engine),
            ("data_mode", "--data-mode", &self.data_mode),
            ("duration", "--time", &self.time),
            ("streams", "--parallel", &self.parallel),
        ];
        let mut values = FlagValues::default();
        for (setting, flag, value) in flags {
            if let Some(value) = value {
                values.set(setting, flag, value);
            }
        }
        values
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval.unwrap_or(SHORTEST_INTERVAL)
    }

    fn phases(&self, provider: &dyn Provider, engine: &str, each: Duration) -> Vec<PhaseSpec> {
        let phase = |load, duration: Duration| PhaseSpec {
            load,
            duration_ms: u32::try_from(duration.as_millis()).unwrap_or(u32::MAX),
        };
        let length = self.idle.unwrap_or(IDLE);
        let probes = provider.probes() && !length.is_zero() && !self.probe_interval().is_zero();
        let idle = probes.then(|| phase(Load::Idle, length));
        if !provider.loads(engine) {
            // An engine without load has a single phase; it lasts as long as a direction would.
            return vec![phase(Load::Idle, each)];
        }
        let loads: &[Load] = match (self.download, self.upload, self.bidir) {
            (true, ..) => &[Load::Download],
            (_, true, _) => &[Load::Upload],
            (.., true) => &[Load::Download, Load::Upload, Load::Bidir],
            _ => &[Load::Download, Load::Upload],
        };
        idle.into_iter().chain(loads.iter().map(|load| phase(*load, each))).collect()
    }
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let request = request(&args, context)?;
    let options = args.provider_options.values(&request.provider)?;
    // A file that cannot be written is reported before the test, which takes time and data.
    let plot = args.plot.map(PlotFile::create).transpose()?;
    // The service gets no provider options, which may be secret, and runs no test whose result is discarded.
    let may_ask = !args.no_save && args.provider_options.first_given().is_none();
    let service = if may_ask { context.service().await? } else { None };
    let mut interrupt = context.interrupts.watch()?;
    // The note is for human readers: a script finds the same facts in `requested` of the document.
    let is_for_people = context.output.format() == OutputFormat::Human;
    let mut note = limit_note(&request.spec, context.settings.streams.is_none()).filter(|_| is_for_people);
    let mut appliance = None;
    let starting = async {
        match service {
            Some(service) => Ok::<_, CommandFailure>(TestHandle::AtService(service.test(&request).await?, None)),
            None => {
                let opened = if args.no_save {
                    Appliance::open_for_reading(&context.settings.state_dir, failure::describe)?
                        .with_database(context.settings.database())
                } else {
                    context.open_appliance().map_err(ApplianceError::or_cannot_save)?.clone()
                };
                let test = appliance.insert(opened).run(request, options).await?;
                Ok(TestHandle::Here(test))
            }
        }
    };
    let mut test = tokio::select! {
        test = starting => test?,
        _ = interrupt.wait_for(|wanted| *wanted) => return Ok(ExitStatus::Interrupted),
    };
    let live = context.output.live();
    let (mut is_cancelled, mut is_read) = (false, true);
    let mut curves = (!args.no_graph && context.output.draws_graphs()).then(PhaseCurves::default);
    loop {
        tokio::select! {
            event = test.next_event() => match event? {
                // If the reader of the output has gone, the test is cancelled, because it would only load the line.
                Some(TestEvent::Test(event)) => {
                    if let Some(curves) = &mut curves {
                        curves.note(&event);
                    }
                    // The note must not precede an error of a test that does not begin.
                    if let Some(note) = note.take_if(|_| matches!(event, Event::Start(_))) {
                        context.output.note(&note);
                    }
                    if live.event(&event) == Err(ReaderGone) && !is_cancelled {
                        (is_cancelled, is_read) = (true, false);
                        test.cancel().await?;
                    }
                }
                Some(TestEvent::WaitingForDevice) => {
                    context.output.note("another test runs on this device; waiting for it to finish");
                }
                None => break,
            },
            _ = interrupt.wait_for(|wanted| *wanted), if !is_cancelled => {
                is_cancelled = true;
                test.cancel().await?;
            }
        }
    }
    let end = test.end().await;
    if let Some(appliance) = appliance {
        appliance.close().await;
    }
    match end? {
        Some(end) if is_read => conclude(end, Pictures { plot, curves }, context),
        Some(end) => {
            report_unsaved(end.unsaved, context);
            Ok(ExitStatus::Interrupted)
        }
        None => Ok(ExitStatus::Interrupted),
    }
}

/// Builds the request of a test that is stored and run later. Fails if the user gave a provider option, because such an
/// option may be secret, and secrets are never stored.
pub(super) fn storable_request(args: &Args, context: &Context) -> Result<TestRequest, CommandFailure> {
    if let Some(option) = args.provider_options.first_given() {
        let because = format!("--{option} may be secret, and schedules store no secrets");
        return Err(ApplianceError::Unsupported(because).into());
    }
    request(args, context)
}

/// Returns a note that `-b` limits each stream, not the sum of the streams. Returns `None` if the test has no such
/// limit, no load or a single stream, or if the user set the number of streams (`is_default` is false).
fn limit_note(spec: &TestSpec, is_default: bool) -> Option<String> {
    let bps = spec.bitrate_bps.filter(|bps| *bps > 0 && is_default && spec.streams > 1)?;
    let loads = spec.phases.iter().any(|phase| !phase.load.directions().is_empty());
    let (streams, each) = (spec.streams, quantity::rate(bps));
    loads.then(|| {
        format!("-b limits each stream: {streams} streams × {each} in each direction; use -P 1 for one stream")
    })
}

/// The plot file and the terminal graphs of a run. Each is `None` if it is not wanted.
struct Pictures {
    plot: Option<PlotFile>,
    curves: Option<PhaseCurves>,
}

/// Prints the result or the failure of the test, and returns the exit code.
fn conclude(end: TestOver, pictures: Pictures, context: &mut Context) -> Result<ExitStatus, CommandFailure> {
    let Pictures { plot, curves } = pictures;
    let plotted = match (plot, &end.measured) {
        (Some(plot), Some(result)) => plot.write(result),
        _ => Ok(()),
    };
    let exit = match (end.measured, end.failure) {
        (Some(result), None) => {
            let reached = result.thresholds.iter().all(|threshold| threshold.passed);
            context.output.result(&result)?;
            if let Some(curves) = curves {
                context.output.lines(&curves.lines())?;
            }
            if reached { ExitStatus::Done } else { ExitStatus::BelowThreshold }
        }
        (Some(result), Some(failure)) if failure.exit == ExitStatus::Interrupted => {
            context.output.result(&result)?;
            ExitStatus::Interrupted
        }
        (Some(result), Some(failure)) => context.output.fail(&failure.measured(result)),
        (None, Some(failure)) => context.output.fail(&failure),
        (None, None) => context.output.fail(&ApplianceError::NothingMeasured.into()),
    };
    let is_saved = end.unsaved.is_none();
    report_unsaved(end.unsaved, context);
    let is_plotted = plotted.is_ok();
    if let Err(failure) = plotted {
        context.output.beside(&failure);
    }
    // The printed result is valid, but a script that relies on the saved results must notice.
    Ok(match exit {
        ExitStatus::Done if !is_saved || !is_plotted => ExitStatus::Failed,
        exit => exit,
    })
}

/// Prints the failure to save a result, if there is one.
fn report_unsaved(unsaved: Option<CommandFailure>, context: &Context) {
    if let Some(mut unsaved) = unsaved {
        unsaved.what = "the result is not saved".to_owned();
        context.output.beside(&unsaved);
    }
}

/// Returns why an iperf3 option that the user gave is refused; `None` if the user gave no such option.
fn refused_iperf3_option(args: &Args) -> Option<&'static str> {
    args.iperf3_json.then_some("-J is not supported: use --json for this program's JSON, --raw to add iperf3's own")
}

/// Returns the other end of the test: `named`, to which the port of `-p` is added if `named` contains no port. Returns
/// `None` if neither is given.
fn peer(named: Option<&str>, port: Option<u16>) -> Result<Option<String>, ApplianceError> {
    let Some(port) = port else { return Ok(named.map(str::to_owned)) };
    let Some(named) = named else {
        return Err(ApplianceError::Unsupported("-p needs the host: -c HOST or --peer HOST".to_owned()));
    };
    let target = HostPort::parse(named, port)?;
    // If `named` contains a port, the default port does not change the result.
    let other = HostPort::parse(named, if port == 1 { 2 } else { 1 })?;
    if target == other && target.port != port {
        return Err(ApplianceError::Unsupported(format!("-p {port} contradicts the port of {named}")));
    }
    Ok(Some(target.to_string()))
}

fn request(args: &Args, context: &Context) -> Result<TestRequest, CommandFailure> {
    request_of(args, &context.settings, &context.origins)
}

/// A command line without options. Parsing it gives the default of every option.
#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct NoOptions {
    #[command(flatten)]
    test: Box<Args>,
}

/// Builds the test request that the settings define without any flag.
pub(super) fn default_request(settings: &Settings, origins: &Origins) -> Result<TestRequest, CommandFailure> {
    let parsed = <NoOptions as clap::Parser>::try_parse_from(std::iter::empty::<&str>());
    let wrong = |error: clap::Error| ApplianceError::Internal(error.to_string());
    request_of(&parsed.map_err(wrong)?.test, settings, origins)
}

/// Builds the test request that the flags and the settings define.
pub(super) fn request_of(args: &Args, settings: &Settings, origins: &Origins) -> Result<TestRequest, CommandFailure> {
    if let Some(because) = refused_iperf3_option(args) {
        return Err(ApplianceError::Unsupported(because.to_owned()).into());
    }
    let wanted = settings.provider.as_deref().unwrap_or("reflector");
    let provider = providers::find(wanted).ok_or_else(|| ApplianceError::NoSuchProvider(wanted.to_owned()))?;
    let transport = if args.udp { PayloadTransport::Udp } else { PayloadTransport::Tcp };
    let meant = provider.default_engine(transport);
    let id = match (&args.engine, &settings.engine) {
        (Some(named), _) if args.udp && named != meant => {
            let because = format!("-u means the engine {meant}, and --engine names {named}");
            let try_ = "omit -u or --engine";
            return Err(CommandFailure::new(
                ExitStatus::Usage,
                "bad_request",
                "cannot request this test",
                because,
                try_,
            ));
        }
        // `-u` on the command line overrides the engine of the configuration.
        (_, Some(named)) if !args.udp => named.as_str(),
        _ => meant,
    };
    let engine_id = EngineId::try_from(id).map_err(|error| ApplianceError::NoSuchEngine(error.to_string()))?;
    let setting = effects::RequestedSetup {
        provider: wanted,
        engine: id,
        has_load: provider.loads(id),
        may_probe: provider.probes(),
        does_probe: !args.probe_interval().is_zero(),
        has_program: id == Iperf3.id(),
    };
    if let Some(because) = effects::without_effect(args, &setting) {
        return Err(ApplianceError::Unsupported(because).into());
    }
    if args.budget.is_some() && setting.has_program {
        let because = "--budget works only with built-in engines: iperf3 sends more than the requested bytes";
        return Err(ApplianceError::Unsupported(because.to_owned()).into());
    }
    let least = if args.bytes.is_some() && args.time.is_none() { TIME_FOR_BYTES } else { Duration::ZERO };
    let phases = args.phases(provider, id, settings.duration.max(least));
    let [of_tcp, of_datagrams] = [PayloadTransport::Tcp, PayloadTransport::Udp].map(|one| provider.default_engine(one));
    let sends_datagrams = args.udp || (id == of_datagrams && of_tcp != of_datagrams);
    // An engine that is named without -u can send datagrams too.
    let transport = if sends_datagrams { PayloadTransport::Udp } else { transport };
    let length = early_end::RequestedLength {
        is_configured: !origins.is_default("duration"),
        sends_datagrams,
        has_program: setting.has_program,
        does_probe: setting.does_probe,
    };
    if args.until_stable
        && let Some(because) = early_end::conflict(args, &length)
    {
        return Err(CommandFailure::new(
            ExitStatus::Usage,
            "bad_request",
            "cannot request this test",
            format!("--until-stable is not possible here: {because}"),
            "remove --until-stable, or the option or setting that excludes it",
        ));
    }
    let streams = settings.streams.unwrap_or(if sends_datagrams { DATAGRAM_STREAMS } else { TCP_STREAMS });
    let spec = TestSpec {
        congestion_control: args.congestion.clone(),
        window_bytes: args.window,
        block_bytes: args.length,
        mss_bytes: args.set_mss,
        dscp: args.dscp.or(args.tos.map(|octet| octet >> 2)),
        bitrate_bps: args.bitrate,
        direction_bytes: args.bytes,
        may_stop: args.until_stable,
        data_path: args.data_path.unwrap_or_default(),
        verify_payload: args.verify_payload,
        fragments: args.fragments,
        loss_bound_ppm: args.loss_bound.map(|share| (share * 1e6).round() as u32),
        probe_interval_us: u32::try_from(args.probe_interval().as_micros()).unwrap_or(u32::MAX),
        ..TestSpec::new(engine_id, DataMode::Tunneled, phases, streams)
    };
    let mut request = TestRequest {
        provider: provider.id().to_owned(),
        peer: peer(settings.peer.as_deref(), args.port)?,
        spec,
        adapts_probes: args.probe_interval.is_none(),
        data_mode: settings.data_mode,
        omit: args.omit,
        budget_bytes: None,
        transport,
        turn: match (args.no_wait, args.wait) {
            (true, _) => TurnWait::No,
            (_, Some(limit)) => TurnWait::AtMost(limit),
            _ => TurnWait::ProviderLimit,
        },
        route: Route {
            family: match (args.ipv4, args.ipv6) {
                (true, _) => Family::V4,
                (_, true) => Family::V6,
                _ => Family::Any,
            },
            origin: Origin { address: args.bind, interface: args.interface.clone() },
        },
        intervals: args.intervals || args.plot.is_some(),
        raw: args.raw,
        thresholds: Thresholds {
            min_download_bps: args.min_download,
            min_upload_bps: args.min_upload,
            max_idle_latency_ms: args.max_idle_latency,
            max_loaded_latency_ms: args.max_loaded_latency,
            max_loss: args.max_loss,
            max_loaded_loss: args.max_loaded_loss,
        },
        discards_result: args.no_save,
    };
    if let Some(bytes) = args.budget {
        request.set_budget(bytes)?;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_p_completes_a_host_and_contradicts_none() {
        let with = |named, port| peer(named, port).map_err(|error| error.to_string());
        assert_eq!(with(Some("attic"), Some(5202)), Ok(Some("attic:5202".to_owned())));
        assert_eq!(with(Some("2001:db8::7"), Some(1)), Ok(Some("[2001:db8::7]:1".to_owned())));
        assert_eq!(with(Some("attic:5202"), Some(5202)), Ok(Some("attic:5202".to_owned())));
        assert_eq!(with(Some("attic"), None), Ok(Some("attic".to_owned())));
        assert!(with(Some("attic:5203"), Some(5202)).unwrap_err().contains("contradicts"));
        assert!(with(None, Some(5202)).unwrap_err().contains("-p needs the host"));
    }
}
