//! Reads and prints the file. A kind of object has its own file.

mod monitor;
mod plan;
mod reflector;
mod schedule;
mod text;

use std::collections::BTreeSet;

use paramedic_appliance::app::DeviceConfiguration;
use toml::de::{DeTable, DeValue};

use super::options::FileOption;
pub(super) use text::FileFault;
use text::{FileText, in_order};

/// The table of the plan, of which there is one.
const PLAN: &str = "plan";

/// What the tables of the file are; the next kind of object joins here. Each but the plan is a list.
const TABLES: [&str; 4] = ["reflector", "schedule", "monitor", PLAN];

/// Reads a file.
pub(super) fn parse(text: &str) -> Result<DeviceConfiguration, FileFault> {
    let file = FileText(text);
    if text.trim().is_empty() {
        // What is left of a program that failed must not remove every schedule.
        return Err(file.fault(0, "it is empty; a comment is enough to say that it describes nothing"));
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
                _ => configuration.schedules.push(schedule::parse(&file, at, object)?),
            }
        }
    }
    Ok(configuration)
}

/// Prints a file that describes this configuration.
pub(super) fn print(configuration: &DeviceConfiguration) -> String {
    let mut text = "# Names of reflectors, schedules, monitors and the plan: packetparamedic apply FILE. The keys are the options\n\
                    # of packetparamedic schedule add, of packetparamedic monitor add and of packetparamedic plan set.\n"
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
            FileOption::Value(value) => match value.parse::<u32>() {
                // Printed without quotes, if that is the same text.
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
        // Of the whole table.
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
            (" \n", 1, "it is empty"),
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
            ("[plan]\ndownload = 9\nupload = 0\n", 1, "plan: the upload of a plan is more than 0 bit/s"),
            ("[[reflector]]\nname = \"a\"\n", 1, "reflector: endpoint_id is missing"),
            ("[[reflector]]\nname = \"a\"\nendpoint_id = \"PP-1\"\n", 3, "endpoint_id: "),
            ("[[monitor]]\nname = \"a\"\n", 1, "monitor: target is missing"),
            ("[[monitor]]\ntarget = \"gateway\"\n", 1, "monitor: name is missing"),
            ("[[monitor]]\nname = \"a\"\ntarget = \"router\"\n", 3, "target: \"router\" is no target of a monitor"),
            ("[[monitor]]\nname = \"a b\"\ntarget = \"gateway\"\n", 2, "name: a name has 1 to 60"),
            (
                "[[monitor]]\nname = \"a\"\ninterval = \"2m\"\ntarget = \"gateway\"\n",
                3,
                "interval: the interval is from 1s",
            ),
            ("[[monitor]]\nname = \"a\"\ninterval = \"soon\"\n", 3, "interval: "),
            ("[[monitor]]\nname = \"a\"\nenabled = 1\n", 3, "enabled: it is of type integer; valid: true or false"),
            ("[[monitor]]\nintervall = \"1s\"\n", 2, "unknown key \"intervall\"; did you mean \"interval\"?"),
            ("[monitor]\nname = \"a\"\n", 1, "monitor is a list of tables: write [[monitor]]"),
            ("[[reflector]]\nname = 5\n", 2, "name: it is of type integer"),
            ("[[reflector]]\nnmae = \"a\"\n", 2, "unknown key \"nmae\"; did you mean \"name\"?"),
        ] {
            let (seen, problem) = fault(text);
            assert!(seen == line && problem.starts_with(said), "{text}: {seen}: {problem}");
        }
    }
}
