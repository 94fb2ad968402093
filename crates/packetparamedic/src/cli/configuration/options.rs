//! Converts options of the command line to keys of a configuration file, and back. A schedule becomes the options of
//! `schedule add`; a schedule that the options cannot express is written as its stored definition.

use std::error::Error as _;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use paramedic_appliance::payload_transport::PayloadTransport;
use paramedic_appliance::providers::{self, PROVIDERS};
use paramedic_appliance::reflector_client::Family;
use paramedic_appliance::request::{TestRequest, TurnWait};
use paramedic_appliance::schedule::{MissedRunPolicy, Schedule, ScheduleError};
use paramedic_host::config::{self as layers, ConfigError, Machine, ValueOrigin};
use paramedic_link::test_spec::{DataMode, DataPathWish, Load};
use paramedic_report::quantity;

use super::super::schedule::{self, AddArgs};
use super::super::speed_test;
use crate::config::Settings;

/// The options of `schedule add` that are not part of a schedule. They are not keys of a configuration file.
const OTHERS: [&str; 8] = ["help", "version", "yes", "json", "json_stream", "plot", "no_graph", "no_save"];
/// The key whose value is the whole stored definition of an object, as JSON.
pub(super) const DEFINITION: &str = "definition";

/// The value of a command-line option in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileOption {
    /// An option without a value: whether it is given.
    Flag(bool),
    /// An option with one value.
    Value(String),
    /// An option that can be given several times: its values.
    List(Vec<String>),
}

/// A fault in the options of an object, such as a schedule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OptionFault {
    /// The key with the fault; `None` if no single key has it.
    pub(super) key: Option<String>,
    /// What is wrong with the option or with the whole object.
    pub(super) problem: String,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct FileOptions {
    #[command(flatten)]
    add: Box<AddArgs>,
}

/// The keys of a `[[schedule]]` table: the long options of `schedule add` that describe the schedule, with underscores,
/// and [`DEFINITION`]. The options of providers are not keys, because they may be secret.
pub(super) fn keys() -> Vec<String> {
    let secrets = PROVIDERS.iter().flat_map(|provider| provider.options()).map(|option| option.name.replace('-', "_"));
    let others = OTHERS.iter().map(ToString::to_string).chain(secrets).collect::<Vec<_>>();
    let options = option_keys(&FileOptions::command());
    options.into_iter().filter(|name| !others.contains(name)).chain([DEFINITION.to_owned()]).collect()
}

/// Returns the long options of a command as keys of a file, which have underscores instead of dashes.
pub(super) fn option_keys(command: &clap::Command) -> Vec<String> {
    let options = command.get_arguments().filter_map(clap::Arg::get_long);
    options.filter(|name| *name != "help").map(|name| name.replace('-', "_")).collect()
}

/// Converts options from a file to the words of a command line that `command` can parse.
pub(super) fn words(command: &clap::Command, given: &[(String, FileOption)]) -> Result<Vec<String>, OptionFault> {
    let mut words = Vec::new();
    for (key, option) in given {
        let name = key.replace('_', "-");
        let fault = |problem: &str| OptionFault { key: Some(key.clone()), problem: problem.to_owned() };
        let flag = command.get_arguments().find(|arg| arg.get_long() == Some(&name));
        let has_value = flag.is_some_and(|flag| flag.get_action().takes_values());
        match option {
            FileOption::Flag(true) if !has_value => words.push(format!("--{name}")),
            FileOption::Flag(false) if !has_value => {}
            FileOption::Value(value) if has_value => words.push(format!("--{name}={value}")),
            FileOption::List(values) if has_value => {
                words.extend(values.iter().map(|value| format!("--{name}={value}")));
            }
            FileOption::Flag(_) => return Err(fault("it needs a value: a text or a number")),
            FileOption::Value(_) | FileOption::List(_) => return Err(fault("valid: true or false")),
        }
    }
    Ok(words)
}

/// Builds the schedule that the options in `given` describe. Ignores the user's settings, because the file alone
/// defines what is measured.
pub(super) fn schedule_of(given: &[(String, FileOption)]) -> Result<Schedule, OptionFault> {
    if let Some((_, FileOption::Value(json))) = given.iter().find(|(key, _)| key == DEFINITION) {
        return defined(json, given);
    }
    let words = words(&FileOptions::command(), given)?;
    let add = *FileOptions::try_parse_from(words).map_err(|error| fault_of_word(&error))?.add;
    let machine = Machine {
        home: None,
        env: &|_| None,
        variables: &[],
        // An empty path, so that no configuration file is read.
        etc_file: PathBuf::new(),
        is_root: true,
        hostname: String::new(),
        exists: &|_| false,
        current_dir: PathBuf::from("/"),
    };
    let loaded =
        layers::load_on::<Settings>(&add.test.settings(), &machine).map_err(|error| fault_of_setting(&error))?;
    let request = speed_test::request_of(&add.test, &loaded.config, &loaded.origins);
    let request = request.map_err(|failure| OptionFault { key: None, problem: failure.because.clone() })?;
    schedule::definition(&add, request).map_err(|error| fault_of_schedule(&error, given))
}

/// Converts the error about a schedule to a fault. The fault names the first key in `given` that the error concerns.
pub(super) fn fault_of_schedule(error: &ScheduleError, given: &[(String, FileOption)]) -> OptionFault {
    let keys: &[&str] = match error {
        ScheduleError::Name(_) => &["name"],
        ScheduleError::Recurrence(_) => &["every", "cron"],
        ScheduleError::Zone(_) => &["zone"],
        ScheduleError::Spread { .. } => &["spread"],
        ScheduleError::AlwaysQuiet { .. } => &["quiet_hours"],
        ScheduleError::NoBudget => &["budget_day", "budget_month"],
        ScheduleError::LineShare(_) => &["busy_share"],
        ScheduleError::Uplink(_) => &["uplink"],
        ScheduleError::DiscardsResult => &[],
    };
    let key = given.iter().map(|(key, _)| key).find(|key| keys.contains(&key.as_str()));
    OptionFault { key: key.cloned(), problem: error.to_string() }
}

fn defined(json: &str, given: &[(String, FileOption)]) -> Result<Schedule, OptionFault> {
    let fault = |problem: String| OptionFault { key: Some(DEFINITION.to_owned()), problem };
    let mut schedule = serde_json::from_str::<Schedule>(json).map_err(|error| fault(error.to_string()))?;
    for (key, option) in given {
        match (key.as_str(), option) {
            (DEFINITION, _) => {}
            ("name", FileOption::Value(name)) => schedule.name.clone_from(name),
            _ => return Err(fault(format!("it describes the whole schedule; remove {key}"))),
        }
    }
    Ok(schedule)
}

/// Converts an error of the command-line parser to a fault. The fault names the key of the wrong option.
pub(super) fn fault_of_word(error: &clap::Error) -> OptionFault {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => Some(argument.clone()),
        Some(ContextValue::Strings(arguments)) => arguments.first().cloned(),
        _ => None,
    };
    let key = argument.and_then(|argument| {
        let name = argument.strip_prefix("--")?.split([' ', '=']).next()?;
        Some(name.replace('-', "_"))
    });
    let problem = match error.source() {
        Some(cause) => cause.to_string(),
        // The error message, without the usage text of the command line.
        None => {
            let text = error.to_string();
            let lines = text.split("\n\n").next().unwrap_or_default().lines().map(str::trim).collect::<Vec<_>>();
            lines.join(" ").trim_start_matches("error: ").to_owned()
        }
    };
    OptionFault { key, problem }
}

/// Converts an error about a setting to a fault. The fault names the key if an option gave the value.
fn fault_of_setting(error: &ConfigError) -> OptionFault {
    match error {
        ConfigError::BadValue { origin: ValueOrigin::Flag(flag), problem, valid, .. } => OptionFault {
            key: Some(flag.trim_start_matches('-').replace('-', "_")),
            problem: format!("{problem}; valid: {valid}"),
        },
        other => OptionFault { key: None, problem: other.to_string() },
    }
}

/// Returns the options that describe a schedule. Parsing these options gives the same schedule.
pub(super) fn options_of(schedule: &Schedule) -> Vec<(String, FileOption)> {
    let options = expressed(schedule);
    let read = schedule_of(&options);
    let is_same = |read: Schedule| Schedule { expected_bytes: schedule.expected_bytes, ..read } == *schedule;
    if read.is_ok_and(is_same) {
        return options;
    }
    // A schedule that was added by the API can have phases that no option expresses.
    let definition = serde_json::to_string(schedule).unwrap_or_default();
    let rows = [("name", schedule.name.clone()), (DEFINITION, definition)];
    rows.map(|(key, value)| (key.to_owned(), FileOption::Value(value))).into()
}

/// Collects the options that describe an object.
#[derive(Default)]
struct OptionRows(Vec<(String, FileOption)>);

impl OptionRows {
    fn value(&mut self, key: &str, value: impl ToString) {
        self.0.push((key.to_owned(), FileOption::Value(value.to_string())));
    }

    fn given<T: ToString>(&mut self, key: &str, value: Option<T>) {
        if let Some(value) = value {
            self.value(key, value);
        }
    }

    fn flag(&mut self, key: &str, is_set: bool) {
        if is_set {
            self.0.push((key.to_owned(), FileOption::Flag(true)));
        }
    }
}

fn expressed(schedule: &Schedule) -> Vec<(String, FileOption)> {
    let mut rows = OptionRows::default();
    rows.value("name", &schedule.name);
    match schedule.when.as_str().strip_prefix("every ") {
        Some(interval) => rows.value("every", interval),
        None => rows.value("cron", &schedule.when),
    }
    rows.value("zone", schedule.zone.name());
    rows.value("spread", quantity::exact_duration(schedule.spread));
    if schedule.missed != MissedRunPolicy::default() {
        rows.value("missed", schedule.missed.as_str());
    }
    rows.given("quiet_hours", schedule.quiet_hours);
    rows.given("budget_day", schedule.budget.day_bytes.map(quantity::exact_bytes));
    rows.given("budget_month", schedule.budget.month_bytes.map(quantity::exact_bytes));
    rows.value("busy_share", schedule.max_line_share.map_or_else(|| "off".to_owned(), share));
    rows.given("uplink", (!schedule.uplinks.is_empty()).then(|| schedule.uplinks.join(",")));
    test(&schedule.request, &mut rows);
    rows.0
}

/// Adds the options of a test: only those in which the test differs from a test without options.
fn test(request: &TestRequest, rows: &mut OptionRows) {
    let mut kind = OptionRows::default();
    if request.provider != "reflector" {
        kind.value("provider", &request.provider);
    }
    kind.flag("udp", request.transport == PayloadTransport::Udp);
    let default_engine = providers::find(&request.provider).map(|provider| provider.default_engine(request.transport));
    if default_engine != Some(request.spec.engine.as_str()) {
        kind.value("engine", &request.spec.engine);
    }
    let plain = [("name", "plain"), ("every", "1d"), ("zone", "UTC")];
    let mut plain = plain.map(|(key, value)| (key.to_owned(), FileOption::Value(value.to_owned()))).to_vec();
    plain.extend(kind.0.iter().cloned());
    rows.0.extend(kind.0);
    // Without a test to compare with, the options stay incomplete, and `options_of` writes the definition.
    let Ok(Schedule { request: plain, .. }) = schedule_of(&plain) else { return };
    rows.given("peer", request.peer.as_ref());
    phases(request, &plain, rows);
    let (spec, default) = (&request.spec, &plain.spec);
    if spec.streams != default.streams {
        rows.value("parallel", spec.streams);
    }
    match request.budget_bytes {
        Some(bytes) => rows.value("budget", bytes),
        None => rows.given("bytes", spec.direction_bytes),
    }
    rows.flag("until_stable", spec.may_stop);
    rows.given(
        "data_mode",
        request.data_mode.map(|mode| if mode == DataMode::Tunneled { "tunneled" } else { "direct" }),
    );
    rows.given("omit", request.omit.map(quantity::exact_duration));
    rows.given("congestion", spec.congestion_control.as_ref());
    rows.given("window", spec.window_bytes);
    rows.given("length", spec.block_bytes);
    rows.given("set_mss", spec.mss_bytes);
    rows.given("dscp", spec.dscp);
    let data_path = match spec.data_path {
        DataPathWish::Plain => Some("plain"),
        DataPathWish::Trunc => Some("trunc"),
        DataPathWish::Splice => Some("splice"),
        _ => None,
    };
    rows.given("data_path", data_path);
    rows.flag("verify_payload", spec.verify_payload);
    rows.flag("fragments", spec.fragments);
    rows.given("loss_bound", spec.loss_bound_ppm.map(|ppm| share(f64::from(ppm) / 1e6)));
    rows.given("bitrate", spec.bitrate_bps);
    if !request.adapts_probes {
        let interval = std::time::Duration::from_micros(spec.probe_interval_us.into());
        rows.value("probe_interval", quantity::exact_duration(interval));
    }
    rows.given("bind", request.route.origin.address);
    rows.given("interface", request.route.origin.interface.as_ref());
    rows.flag("ipv4", request.route.family == Family::V4);
    rows.flag("ipv6", request.route.family == Family::V6);
    rows.flag("no_wait", request.turn == TurnWait::No);
    if let TurnWait::AtMost(limit) = request.turn {
        rows.value("wait", quantity::exact_duration(limit));
    }
    rows.flag("intervals", request.intervals);
    rows.flag("raw", request.raw);
    let limits = &request.thresholds;
    rows.given("min_download", limits.min_download_bps);
    rows.given("min_upload", limits.min_upload_bps);
    rows.given("max_idle_latency", limits.max_idle_latency_ms);
    rows.given("max_loaded_latency", limits.max_loaded_latency_ms);
    rows.given("max_loss", limits.max_loss.map(share));
    rows.given("max_loaded_loss", limits.max_loaded_loss.map(share));
}

/// Adds the options of the phases of a test: their directions and their durations.
fn phases(request: &TestRequest, plain: &TestRequest, rows: &mut OptionRows) {
    let length = |request: &TestRequest, wanted: fn(Load) -> bool| {
        let phase = request.spec.phases.iter().find(|phase| wanted(phase.load));
        phase.map(|phase| std::time::Duration::from_millis(phase.duration_ms.into()))
    };
    let loads =
        request.spec.phases.iter().map(|phase| phase.load).filter(|load| *load != Load::Idle).collect::<Vec<_>>();
    rows.flag("download", loads == [Load::Download]);
    rows.flag("upload", loads == [Load::Upload]);
    rows.flag("bidir", loads.contains(&Load::Bidir));
    // An engine without load has a single phase; the option `time` is its duration.
    let is_load: fn(Load) -> bool = if loads.is_empty() { |_| true } else { |load| load != Load::Idle };
    let time = length(request, is_load);
    if time != length(plain, is_load) || request.spec.direction_bytes.is_some() {
        rows.given("time", time.map(quantity::exact_duration));
    }
    let idle = |request| if loads.is_empty() { None } else { length(request, |load| load == Load::Idle) };
    if idle(request) != idle(plain) {
        rows.value("idle", quantity::exact_duration(idle(request).unwrap_or_default()));
    }
}

/// Formats a share from 0 to 1 as a text that is parsed as exactly this share.
fn share(share: f64) -> String {
    if share < 1.0 { share.to_string() } else { format!("{}%", share * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Converts words, such as `udp time=5`, to options.
    fn options(words: &str) -> Vec<(String, FileOption)> {
        let option = |word: &str| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), FileOption::Value(value.to_owned())),
            None => (word.to_owned(), FileOption::Flag(true)),
        };
        words.split_whitespace().map(option).collect()
    }

    #[test]
    fn every_option_is_read_back() {
        let mut unseen = keys();
        for words in [
            "every=6h",
            "cron=@daily missed=once quiet_hours=22:00-07:00 budget_day=1500MB budget_month=20GiB busy_share=7% spread=90s \
             uplink=eth0,wan",
            "every=1d busy_share=off peer=attic time=5 parallel=8 idle=500ms omit=1 download data_mode=tunneled",
            "every=1d busy_share=100% upload congestion=bbr window=4M length=128K set_mss=1200 dscp=EF data_path=splice",
            "every=1d bidir verify_payload bitrate=100M bytes=1G time=90s no_wait intervals ipv4",
            "every=1d budget=200MB wait=10m ipv6 bind=2001:db8::7 interface=eth0 probe_interval=20ms",
            "every=1d until_stable client=attic port=4001",
            "every=1d udp bitrate=0 loss_bound=0.5% fragments length=9000",
            "every=1d udp bitrate=5M parallel=2 tos=184 idle=0",
            "every=1d probe_interval=0 time=2m engine=tcp",
            "every=1d min_download=900M min_upload=1.5G max_idle_latency=12.3 max_loaded_latency=100 max_loss=1% \
             max_loaded_loss=0.07",
            "every=1d provider=iperf3 peer=iperf.example.net bidir time=30 raw",
            "every=1d provider=iperf3 udp bitrate=50M peer=192.0.2.7:5202",
            "every=1d bytes=10M",
        ] {
            let given = options(&format!("name=a zone=UTC {words}"));
            unseen.retain(|key| given.iter().all(|(seen, _)| seen != key));
            let schedule = schedule_of(&given).unwrap_or_else(|fault| panic!("{words}: {fault:?}"));
            let printed = options_of(&schedule);
            assert!(printed.iter().all(|(key, _)| key != DEFINITION), "{words}: {printed:?}");
            assert_eq!(schedule_of(&printed), Ok(schedule), "{words}: {printed:?}");
        }
        assert_eq!(unseen, [DEFINITION], "an option that no case has");
    }

    #[test]
    fn what_no_option_expresses_is_written_as_it_is_stored() {
        let mut schedule = schedule_of(&options("name=a zone=UTC every=1d")).unwrap();
        schedule.request.spec.phases.reverse();
        let printed = options_of(&schedule);
        assert_eq!(printed.len(), 2, "{printed:?}");
        assert_eq!(schedule_of(&printed), Ok(schedule));
        let more = [&printed[..], &options("parallel=4")].concat();
        assert_eq!(schedule_of(&more).unwrap_err().key.as_deref(), Some(DEFINITION));
    }
}
