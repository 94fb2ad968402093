//! Parses a configuration file, and writes a configuration as the text of a file. Each kind of object has a module of
//! its own.

mod channel;
mod monitor;
mod plan;
mod reflector;
mod rule;
mod schedule;
mod text;

use std::collections::BTreeSet;
use std::path::Path;

use paramedic_appliance::alerts::secret_text::SecretText;
use paramedic_appliance::app::DeviceConfiguration;
use toml::de::{DeTable, DeValue};

use super::options::FileOption;
pub(super) use channel::read_secret;
pub(super) use text::FileFault;
use text::{FileText, in_order};

/// The name of the table of the plan. A file has at most one plan, so this table is not a list.
const PLAN: &str = "plan";

/// The names of the tables of a configuration file, one for each kind of object. Each table except that of the plan is
/// a list.
const TABLES: [&str; 6] = ["reflector", "schedule", "monitor", "channel", "rule", PLAN];

/// A function that returns the secret in the file at a path. Its error is the reason why the file cannot be read.
pub(super) type SecretSource<'a> = dyn Fn(&Path) -> Result<SecretText, String> + 'a;

/// Parses the text of a configuration file. `secrets` reads the secret files that the text names.
pub(super) fn parse(text: &str, secrets: &SecretSource<'_>) -> Result<DeviceConfiguration, FileFault> {
    let file = FileText(text);
    if text.trim().is_empty() {
        // A failed program can leave an empty file, which must not remove every schedule.
        let problem = "the file is empty; to remove all objects of earlier files on purpose, apply a file with only a \
                       comment";
        return Err(file.fault(0, problem));
    }
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        file.fault(at, format!("not valid TOML: {}", error.message()))
    })?;
    let mut configuration = DeviceConfiguration::default();
    for (key, value) in in_order(table.get_ref()) {
        let name = &**key.get_ref();
        if name == PLAN {
            configuration.plan = Some(plan::parse(&file, key.span().start, value.get_ref())?);
            continue;
        }
        if !TABLES.contains(&name) {
            return Err(file.unknown(key, &TABLES));
        }
        let no_list = |at| file.fault(at, format!("{name} is a list of tables: write [[{name}]]"));
        let DeValue::Array(objects) = value.get_ref() else { return Err(no_list(key.span().start)) };
        for object in objects.iter() {
            let at = object.span().start;
            let DeValue::Table(object) = object.get_ref() else { return Err(no_list(at)) };
            match name {
                "reflector" => configuration.reflectors.push(reflector::parse(&file, at, object)?),
                "monitor" => configuration.monitors.push(monitor::parse(&file, at, object)?),
                "channel" => configuration.channels.push(channel::parse(&file, at, object, secrets)?),
                "rule" => configuration.rules.push(rule::parse(&file, at, object)?),
                _ => configuration.schedules.push(schedule::parse(&file, at, object)?),
            }
        }
    }
    Ok(configuration)
}

/// Returns the text of a configuration file that describes `configuration`.
pub(super) fn print(configuration: &DeviceConfiguration) -> String {
    let mut text = "# The names of the reflectors, and the plan, schedules, monitors, channels and rules. To apply\n\
                    # this file, run `packetparamedic apply FILE`. The keys are the options of the commands that add\n\
                    # these objects. This file has no secrets of channels. A stored secret is kept as long as its\n\
                    # channel keeps its server.\n"
        .to_owned();
    if let Some(plan) = &configuration.plan {
        text += "\n[plan]\n";
        rows(&mut text, plan::rows(plan));
    }
    for reflector in &configuration.reflectors {
        table(&mut text, "reflector", reflector::rows(reflector));
    }
    for schedule in &configuration.schedules {
        table(&mut text, "schedule", schedule::rows(schedule));
    }
    for monitor in &configuration.monitors {
        table(&mut text, "monitor", monitor::rows(monitor));
    }
    for channel in &configuration.channels {
        table(&mut text, "channel", channel::rows(channel));
    }
    for rule in &configuration.rules {
        table(&mut text, "rule", rule::rows(rule));
    }
    text
}

fn table(text: &mut String, name: &str, of_table: impl IntoIterator<Item = (String, FileOption)>) {
    *text += &format!("\n[[{name}]]\n");
    rows(text, of_table);
}

fn rows(text: &mut String, rows: impl IntoIterator<Item = (String, FileOption)>) {
    let mut seen = BTreeSet::new();
    for (key, value) in rows {
        debug_assert!(seen.insert(key.clone()), "{key} twice");
        let value = match value {
            FileOption::Flag(value) => toml::Value::Boolean(value),
            FileOption::List(values) => toml::Value::Array(values.into_iter().map(toml::Value::String).collect()),
            FileOption::Value(value) => match value.parse::<u32>() {
                // A whole number is written without quotes if its decimal digits are exactly `value`.
                Ok(number) if number.to_string() == value => toml::Value::Integer(number.into()),
                _ => toml::Value::String(value),
            },
        };
        *text += &format!("{key} = {value}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a configuration file. The secret in each file is the name of that file; the file `missing` does not
    /// exist.
    fn parse(text: &str) -> Result<DeviceConfiguration, FileFault> {
        super::parse(text, &|path| match path.file_name() {
            Some(name) if name == "missing" => Err("no such file".to_owned()),
            name => Ok(SecretText::new(name.unwrap_or_default().to_string_lossy().into_owned())),
        })
    }

    fn fault(text: &str) -> (usize, String) {
        let FileFault { line, problem } = parse(text).unwrap_err();
        (line, problem)
    }

    const ID: &str = "PP-01R7-0W3G-E1R7-0W3G-E1R7-0W3G-E1R7-0W3G-E1R7-0W3G-E1R7-0W3G-E1R7-Q23N";

    #[test]
    fn what_is_printed_is_read_back_and_printed_the_same() {
        let text = format!(
            "[[reflector]]\nname = \"attic\"\nendpoint_id = \"{ID}\"\n\n[[schedule]]\nname = \"nightly\"\n\
             cron = \"30 3 * * *\"\nzone = \"Europe/Berlin\"\nspread = \"0\"\nquiet_hours = \"08:00-20:00\"\n\
             budget_day = \"1GB\"\nbudget_month = \"20GB\"\nbusy_share = \"off\"\nmissed = \"once\"\n\
             peer = \"attic\"\ntime = 5\nparallel = 8\n\n[[schedule]]\nname = \"udp\"\nevery = \"6h\"\n\
             enabled = false\nudp = true\nbitrate = \"5M\"\ninterface = \"eth \\\"0\\\"\"\n"
        );
        let read = parse(&text).unwrap();
        assert_eq!((read.reflectors.len(), read.schedules.len()), (1, 2));
        let [nightly, udp] = &read.schedules[..] else { panic!() };
        assert_eq!((nightly.schedule.request.spec.streams, nightly.enabled, udp.enabled), (8, true, false));
        assert_eq!(nightly.schedule.max_line_share, None);
        let printed = print(&read);
        assert_eq!(parse(&printed).unwrap(), read, "{printed}");
        assert_eq!(print(&parse(&printed).unwrap()), printed);
        assert_eq!(parse("# nothing"), Ok(DeviceConfiguration::default()));
    }

    #[test]
    fn a_plan_is_printed_and_read_back() {
        let read = parse("[plan]\nname = \"Fibre\"\ndownload = \"250M\"\nupload = 40000000\nupload_minimum = \"1M\"\n")
            .unwrap();
        let plan = read.plan.clone().unwrap();
        assert_eq!((plan.name.as_deref(), plan.download.promised_bps), (Some("Fibre"), 250_000_000));
        assert_eq!((plan.upload.minimum_bps, plan.upload.normal_bps), (Some(1_000_000), None));
        let printed = print(&read);
        assert!(printed.contains("\n[plan]\nname = \"Fibre\"\ndownload = 250000000\n"), "{printed}");
        assert_eq!(parse(&printed).unwrap(), read);
    }

    #[test]
    fn monitors_are_printed_and_read_back() {
        let text = "[[monitor]]\nname = \"slow\"\ntarget = \"reflector:my attic\"\ninterval = \"5s\"\nenabled = false\n\n\
                    [[monitor]]\nname = \"web\"\ntarget = \"https://example.org/\"\ninterval = 30\n\n\
                    [[monitor]]\nname = \"router\"\ntarget = \"gateway\"\n";
        let read = parse(text).unwrap();
        let seen = read.monitors.iter().map(|one| (&*one.monitor.name, one.monitor.interval_ms, one.enabled));
        assert_eq!(seen.collect::<Vec<_>>(), [("slow", 5_000, false), ("web", 30_000, true), ("router", 1_000, true)]);
        let printed = print(&read);
        assert_eq!(parse(&printed).unwrap(), read, "{printed}");
    }

    #[test]
    fn channels_are_read_with_their_secrets_and_printed_without() {
        let text = "[[channel]]\nname = \"phone\"\nkind = \"ntfy\"\ntopic = \"pp\"\ntoken_file = \"/etc/geheim\"\n\n\
                    [[channel]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"https://a.example:8443/geheim\"\nenabled = false\n\n\
                    [[channel]]\nname = \"mail\"\nkind = \"smtp\"\nserver = \"mail.example.org\"\nuser = \"ann\"\n\
                    password_file = \"/etc/geheim\"\nfrom = \"pp@example.org\"\nto = [\"a@b.c\", \"d@e.f\"]\n\n\
                    [[channel]]\nname = \"run\"\nkind = \"command\"\nprogram = \"/bin/a\"\nargs = [\"-x\", \"\\\"\"]\n";
        let read = parse(text).unwrap();
        let secrets = read.channels.iter().map(|one| one.secrets.names().join(",")).collect::<Vec<_>>();
        assert_eq!(secrets, ["token", "url", "password", ""]);
        let printed = print(&read);
        assert!(!printed.contains("geheim"), "{printed}");
        let mut again = parse(&printed).unwrap();
        assert_eq!(print(&again), printed);
        for (printed, read) in again.channels.iter_mut().zip(&read.channels) {
            printed.secrets.clone_from(&read.secrets);
        }
        assert_eq!(again, read);
        assert!(printed.contains("server = \"https://a.example:8443\"\nenabled = false\n"), "{printed}");
    }

    #[test]
    fn rules_are_printed_and_read_back() {
        let text = "[[rule]]\nmetric = \"download\"\nbelow_plan = \"70%\"\ntimes = \"3/4\"\nretest = true\nchannel = [\"a\", \"b\"]\n\
                    quiet_hours = \"22:00-07:00\"\nzone = \"Europe/Berlin\"\n\n[[rule]]\nname = \"lost\"\nmetric = \"monitor_loss\"\n\
                    above = \"7%\"\nwindow = 15\ntarget = \"my attic\"\nchannel = \"a\"\nenabled = false\n\n\
                    [[rule]]\nmetric = \"outage\"\nabove = \"2m\"\n\n[[rule]]\nmetric = \"test_failed\"\ntimes = \"3/3\"\n\n\
                    [[rule]]\nname = \"rtt\"\nmetric = \"idle_latency\"\nabove = \"80.5ms\"\n\n\
                    [[rule]]\nname = \"usual\"\nmetric = \"idle_latency\"\nabove_usual = \"257%\"\n\n\
                    [[rule]]\nname = \"rate\"\nmetric = \"upload\"\nbelow = \"2.5M\"\n";
        let mut read = parse(text).unwrap();
        assert_eq!((read.rules[0].rule.name.as_str(), read.rules[1].enabled), ("download", false));
        // A rule that no option expresses.
        let mut odd = read.rules[0].clone();
        (odd.rule.name, odd.rule.limit) =
            ("odd".to_owned(), Some(paramedic_appliance::alerts::AlertLimit::BelowPlan(1.0 / 3.0)));
        read.rules.push(odd);
        let printed = print(&read);
        assert_eq!(parse(&printed).unwrap(), read, "{printed}");
        assert!(printed.contains("below_plan = \"70%\"") && printed.contains("above = \"7%\""), "{printed}");
        assert!(printed.matches("definition = ").count() <= 1, "{printed}");
    }

    #[test]
    fn a_fault_is_named_with_its_line_and_its_key() {
        let schedule = |more: &str| fault(&format!("\n[[schedule]]\nname = \"a\"\nevery = \"6h\"\n{more}\n"));
        for (more, said) in [
            ("evry = \"6h\"", "unknown key \"evry\"; did you mean \"every\"?"),
            ("parralel = 4", "unknown key \"parralel\"; did you mean \"parallel\"?"),
            ("budget-month = \"1GB\"", "unknown key \"budget-month\"; did you mean \"budget_month\"?"),
            ("json = true", "unknown key \"json\"; "),
            ("no_save = true", "unknown key \"no_save\"; "),
            ("password = \"x\"", "unknown key \"password\"; "),
            ("parallel = 65", "parallel: "),
            ("parallel = \"many\"", "parallel: "),
            ("parallel = [1]", "parallel: it is of type array"),
            ("quiet_hours = \"22\"", "quiet_hours: "),
            ("time = \"soon\"", "time: "),
            ("udp = \"yes\"", "udp: "),
            ("enabled = \"no\"", "enabled: it is of type string; valid: true or false"),
            ("zone = \"Mars/Olympus\"", "zone: "),
            ("missed = \"twice\"", "missed: "),
            ("missed = true", "missed: "),
            ("upload = true\ndownload = true", ""),
            ("every = \"6h\"", "not valid TOML: "),
        ] {
            let (line, problem) = schedule(more);
            assert!((5..=6).contains(&line) && problem.starts_with(said), "{more}: {line}: {problem}");
        }
        // Faults in whole files: the text of the file, the line of the fault, and the start of the problem.
        for (text, line, said) in [
            ("[[schedule]]\nname = \"a\"\n", 1, "schedule: "),
            ("\n[[schedule]]\nevery = \"6h\"\n", 2, "schedule: "),
            ("[[schedule]]\nname = \"a\"\ncron = \"0 0 30 2 *\"\n", 3, "cron: \"0 0 30 2 *\" never occurs"),
            ("[[schedule]]\nname = \"a b\"\nevery = \"6h\"\n", 2, "name: "),
            (
                "[[schedule]]\nname = \"a\"\nevery = \"6h\"\nbudget_month = 0\n",
                4,
                "budget_month: with a data budget of 0",
            ),
            ("[[schedule]]\nname = \"a\"\nevery = \"6h\"\nspread = \"4h\"\n", 4, "spread: "),
            ("[[schedule]]\nname = \"a\"\nevery = \"6h\"\nuplink = \"\"\n", 4, "uplink: no network interface"),
            (" \n", 1, "the file is empty"),
            ("[[schedule]]\nname = \"a\"\ncron = \"every 6h\"\n", 3, "cron: "),
            ("[[schedule]]\nname = \"a\"\ncron = \"0 25 * * *\"\n", 3, "cron: "),
            ("[[schedules]]\n", 1, "unknown key \"schedules\"; did you mean \"schedule\"?"),
            ("[schedule]\nname = \"a\"\n", 1, "schedule is a list of tables: write [[schedule]]"),
            ("schedule = [1]\n", 1, "schedule is a list of tables"),
            ("x\n", 1, "not valid TOML: "),
            ("[[plan]]\n", 1, "plan is a table: write [plan]"),
            ("[plan]\ndownload = \"250M\"\n", 1, "plan: upload is missing"),
            ("[plan]\ndownlod = \"250M\"\n", 2, "unknown key \"downlod\"; did you mean \"download\"?"),
            ("[plan]\ndownload = \"fast\"\n", 2, "download: "),
            ("[plan]\ndownload = 1.5\n", 2, "download: it is of type float"),
            ("[plan]\ndownload = 9\nupload = 0\n", 1, "plan: each upload rate of a plan must be more than 0 bit/s"),
            ("[[reflector]]\nname = \"a\"\n", 1, "reflector: endpoint_id is missing"),
            ("[[reflector]]\nname = \"a\"\nendpoint_id = \"PP-1\"\n", 3, "endpoint_id: "),
            ("[[monitor]]\nname = \"a\"\n", 1, "monitor: target is missing"),
            ("[[monitor]]\ntarget = \"gateway\"\n", 1, "monitor: name is missing"),
            ("[[monitor]]\nname = \"a\"\ntarget = \"router\"\n", 3, "target: \"router\" is not a valid target"),
            ("[[monitor]]\nname = \"a b\"\ntarget = \"gateway\"\n", 2, "name: \"a b\" is not a valid name"),
            (
                "[[monitor]]\nname = \"a\"\ninterval = \"2m\"\ntarget = \"gateway\"\n",
                3,
                "interval: an interval of 2m is not valid",
            ),
            ("[[monitor]]\nname = \"a\"\ninterval = \"soon\"\n", 3, "interval: "),
            ("[[monitor]]\nname = \"a\"\nenabled = 1\n", 3, "enabled: it is of type integer; valid: true or false"),
            ("[[monitor]]\nintervall = \"1s\"\n", 2, "unknown key \"intervall\"; did you mean \"interval\"?"),
            ("[monitor]\nname = \"a\"\n", 1, "monitor is a list of tables: write [[monitor]]"),
            ("[[channel]]\nname = \"a\"\n", 1, "channel: kind is missing"),
            (
                "[[channel]]\nkind = \"pigeon\"\n",
                2,
                "kind: \"pigeon\" is not a kind of channel; valid: webhook, ntfy, smtp, command",
            ),
            ("[[channel]]\nkind = \"ntfy\"\n", 1, "channel: name is missing"),
            ("[[channel]]\nkind = \"ntfy\"\nname = \"a\"\n", 1, "channel: topic is missing"),
            (
                "[[channel]]\nkind = \"ntfy\"\nname = \"a\"\ntopic = \"a/b\"\n",
                1,
                "channel: \"a/b\" is not a valid topic",
            ),
            ("[[channel]]\nkind = \"ntfy\"\ntoken = \"x\"\n", 3, "unknown key \"token\""),
            ("[[channel]]\nkind = \"ntfy\"\ntoken_file = \"x\"\n", 3, "token_file: it is not an absolute path"),
            ("[[channel]]\nkind = \"ntfy\"\ntoken_file = \"/missing\"\n", 3, "token_file: no such file"),
            ("[[channel]]\nkind = \"webhook\"\nname = \"a\"\n", 1, "channel: url_file is missing"),
            ("[[channel]]\nkind = \"smtp\"\nport = 0.5\n", 3, "port: it is of type float"),
            ("[[channel]]\nkind = \"smtp\"\nport = 70000\n", 3, "port: valid: 1 to 65535"),
            ("[[channel]]\nkind = \"command\"\nargs = [5]\n", 3, "args: it is of type integer"),
            (
                "[[channel]]\nkind = \"command\"\nname = \"a\"\nprogram = \"x\"\n",
                1,
                "channel: \"x\" is not an absolute path",
            ),
            ("[channel]\nname = \"a\"\n", 1, "channel is a list of tables: write [[channel]]"),
            ("[[rule]]\nname = \"a\"\n", 1, "rule: metric is missing"),
            ("[[rule]]\nmetric = \"speed\"\n", 2, "metric: \"speed\" is not a metric"),
            ("[[rule]]\nmetric = \"download\"\n", 1, "rule: "),
            ("[[rule]]\nmetric = \"download\"\nbelow_plan = 0.7\n", 3, "below_plan: it is of type float"),
            ("[[rule]]\nmetric = \"download\"\nbelow_plan = \"0.7\"\n", 3, "below_plan: valid: a share in percent"),
            ("[[rule]]\nmetric = \"loss\"\nabove = \"2%\"\nbelow = \"3%\"\n", 3, "above: "),
            (
                "[[rule]]\nmetric = \"loss\"\nchannels = [\"a\"]\n",
                3,
                "unknown key \"channels\"; did you mean \"channel\"?",
            ),
            ("[[rule]]\nmetric = \"loss\"\nretest = \"yes\"\n", 3, "retest: valid: true or false"),
            ("[[rule]]\nsuggested = true\n", 2, "unknown key \"suggested\""),
            ("[[reflector]]\nname = 5\n", 2, "name: it is of type integer"),
            ("[[reflector]]\nnmae = \"a\"\n", 2, "unknown key \"nmae\"; did you mean \"name\"?"),
        ] {
            let (seen, problem) = fault(text);
            assert!(seen == line && problem.starts_with(said), "{text}: {seen}: {problem}");
        }
    }
}
