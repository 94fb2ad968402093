//! Reads and prints the file. Pure, except for the clock and the time zones of this host.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use paramedic_appliance::app::{ConfiguredSchedule, DeviceConfiguration, ReflectorName};
use paramedic_appliance::plan::{Plan, PromisedRate};
use paramedic_host::config::nearest_name;
use paramedic_link::{EndpointId, PeerText};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::values::rate;
use super::options::{self, FileOption, OptionFault};

/// The lists of tables of the file: the next kind of object joins here.
const TABLES: [&str; 2] = ["reflector", "schedule"];
/// The table of the plan, of which there is one.
const PLAN: &str = "plan";
/// The keys of the plan: the options of `packetparamedic plan set`.
const PLAN_KEYS: [&str; 7] =
    ["name", "download", "download_normal", "download_minimum", "upload", "upload_normal", "upload_minimum"];
/// The keys of a reflector.
const REFLECTOR_KEYS: [&str; 2] = ["endpoint_id", "name"];
/// The maximum number of keys that an error lists.
const LISTED_KEYS: usize = 8;
/// The key of a schedule that is no option of `schedule add`.
const ENABLED: &str = "enabled";

/// A fault of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileFault {
    /// The line, from 1.
    pub(super) line: usize,
    /// What is wrong, with the key.
    pub(super) problem: String,
}

/// The text of a file, with its lines.
struct FileText<'a>(&'a str);

impl FileText<'_> {
    fn fault(&self, at: usize, problem: impl Into<String>) -> FileFault {
        let line = 1 + self.0.bytes().take(at).filter(|byte| *byte == b'\n').count();
        FileFault { line, problem: problem.into() }
    }

    fn unknown(&self, key: &Spanned<std::borrow::Cow<'_, str>>, known: &[&str]) -> FileFault {
        let suggestion = match nearest_name(key.get_ref(), known.iter().copied()) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None if known.len() > LISTED_KEYS => "valid: the options of `packetparamedic schedule add`".to_owned(),
            None => format!("valid: {}", known.join(", ")),
        };
        self.fault(key.span().start, format!("unknown key {:?}; {suggestion}", key.get_ref()))
    }
}

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
        let name = key.get_ref();
        if name == PLAN {
            configuration.plan = Some(plan(&file, key.span().start, value.get_ref())?);
            continue;
        }
        if !TABLES.contains(&&**name) {
            return Err(file.unknown(key, &[TABLES[0], TABLES[1], PLAN]));
        }
        let DeValue::Array(objects) = value.get_ref() else {
            return Err(file.fault(key.span().start, format!("{name} is a list of tables: write [[{name}]]")));
        };
        for object in objects.iter() {
            let at = object.span().start;
            let DeValue::Table(object) = object.get_ref() else {
                return Err(file.fault(at, format!("{name} is a list of tables: write [[{name}]]")));
            };
            match &**name {
                "reflector" => configuration.reflectors.push(reflector(&file, at, object)?),
                _ => configuration.schedules.push(schedule(&file, at, object)?),
            }
        }
    }
    Ok(configuration)
}

/// The entries in the order of the file, so that the error is the first fault of the file.
fn in_order<'a, 'b>(table: &'b DeTable<'a>) -> Vec<(&'b Spanned<std::borrow::Cow<'a, str>>, &'b Spanned<DeValue<'a>>)> {
    let mut entries = table.iter().collect::<Vec<_>>();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn reflector(file: &FileText<'_>, at: usize, table: &DeTable<'_>) -> Result<ReflectorName, FileFault> {
    let (mut endpoint_id, mut name) = (None, None);
    for (key, value) in in_order(table) {
        let wrong = |problem: String| file.fault(key.span().start, format!("{}: {problem}", key.get_ref()));
        let text = || match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            other => Err(wrong(format!("it is of type {}; valid: a text", other.type_str()))),
        };
        match &**key.get_ref() {
            "endpoint_id" => {
                let id = text()?.parse::<EndpointId>().map_err(|error| wrong(error.to_string()))?;
                endpoint_id = Some(id);
            }
            "name" => name = Some(PeerText::new(&text()?)),
            _ => return Err(file.unknown(key, &REFLECTOR_KEYS)),
        }
    }
    match (endpoint_id, name) {
        (Some(endpoint_id), Some(name)) => Ok(ReflectorName { endpoint_id, name }),
        (None, _) => Err(file.fault(at, "reflector: endpoint_id is missing; `packetparamedic reflectors` prints it")),
        (_, None) => Err(file.fault(at, "reflector: name is missing")),
    }
}

fn plan(file: &FileText<'_>, at: usize, value: &DeValue<'_>) -> Result<Plan, FileFault> {
    let DeValue::Table(table) = value else {
        return Err(file.fault(at, "plan is a table: write [plan]"));
    };
    let (mut name, mut rates) = (None, BTreeMap::new());
    for (key, value) in in_order(table) {
        let of_key = &**key.get_ref();
        let wrong = |problem: String| file.fault(key.span().start, format!("{of_key}: {problem}"));
        let Some(known) = PLAN_KEYS.into_iter().find(|known| *known == of_key) else {
            return Err(file.unknown(key, &PLAN_KEYS));
        };
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            other => return Err(wrong(format!("it is of type {}; valid: a text or a number", other.type_str()))),
        };
        match known {
            "name" => name = Some(text),
            _ => drop(rates.insert(known, rate(&text).map_err(wrong)?)),
        }
    }
    let needed = |key: &str| {
        let missing = || file.fault(at, format!("plan: {key} is missing"));
        rates.get(key).copied().ok_or_else(missing)
    };
    let promised = |word: &str| {
        let other = |kind: &str| rates.get(format!("{word}_{kind}").as_str()).copied();
        Ok(PromisedRate { promised_bps: needed(word)?, normal_bps: other("normal"), minimum_bps: other("minimum") })
    };
    let plan = Plan { name, download: promised("download")?, upload: promised("upload")? };
    plan.check().map_err(|error| file.fault(at, format!("plan: {error}")))?;
    Ok(plan)
}

fn schedule(file: &FileText<'_>, at: usize, table: &DeTable<'_>) -> Result<ConfiguredSchedule, FileFault> {
    let known = options::keys();
    let mut keys = known.iter().map(String::as_str).collect::<Vec<_>>();
    keys.push(ENABLED);
    let (mut enabled, mut given) = (true, Vec::new());
    let entries = in_order(table);
    for (key, value) in &entries {
        let name = &**key.get_ref();
        let wrong = |problem: String| file.fault(key.span().start, format!("{name}: {problem}"));
        if !keys.contains(&name) {
            return Err(file.unknown(key, &keys));
        }
        let option = match value.get_ref() {
            DeValue::Boolean(value) if name == ENABLED => {
                enabled = *value;
                continue;
            }
            other if name == ENABLED => {
                return Err(wrong(format!("it is of type {}; valid: true or false", other.type_str())));
            }
            DeValue::Boolean(value) => FileOption::Flag(*value),
            DeValue::String(text) => FileOption::Value(text.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => FileOption::Value(number.as_str().to_owned()),
            DeValue::Float(number) => FileOption::Value(number.as_str().to_owned()),
            other => return Err(wrong(format!("it is of type {}; valid: a text or a number", other.type_str()))),
        };
        given.push((name.to_owned(), option));
    }
    let now = now();
    let built = options::schedule_of(&given).and_then(|schedule| match schedule.check(now) {
        Ok(()) => Ok(schedule),
        Err(error) => Err(options::fault_of_schedule(&error, &given)),
    });
    let schedule = built.map_err(|OptionFault { key, problem }| {
        let named = key.and_then(|wanted| entries.iter().find(|(key, _)| *key.get_ref() == wanted));
        match named {
            Some((key, _)) => file.fault(key.span().start, format!("{}: {problem}", key.get_ref())),
            None => file.fault(at, format!("schedule: {problem}")),
        }
    })?;
    Ok(ConfiguredSchedule { enabled, schedule })
}

/// Prints a file that describes this configuration.
pub(super) fn print(configuration: &DeviceConfiguration) -> String {
    let mut text =
        "# Names of reflectors, schedules and the plan: packetparamedic apply FILE. The keys of a schedule are the options\n\
                    # of packetparamedic schedule add, those of the plan the options of packetparamedic plan set.\n"
            .to_owned();
    if let Some(plan) = &configuration.plan {
        text += "\n[plan]\n";
        rows(&mut text, rows_of_plan(plan));
    }
    for ReflectorName { endpoint_id, name } in &configuration.reflectors {
        let rows = [("name", name.as_str().to_owned()), ("endpoint_id", endpoint_id.to_string())];
        table(&mut text, "reflector", rows.map(|(key, value)| (key.to_owned(), FileOption::Value(value))));
    }
    for ConfiguredSchedule { enabled, schedule } in &configuration.schedules {
        let disabled = (!enabled).then(|| (ENABLED.to_owned(), FileOption::Flag(false)));
        table(&mut text, "schedule", options::options_of(schedule).into_iter().chain(disabled));
    }
    text
}

fn rows_of_plan(plan: &Plan) -> Vec<(String, FileOption)> {
    let name = plan.name.iter().map(|name| ("name".to_owned(), FileOption::Value(name.clone())));
    let rates = [("download", plan.download), ("upload", plan.upload)].into_iter().flat_map(|(word, rate)| {
        [
            (word.to_owned(), Some(rate.promised_bps)),
            (format!("{word}_normal"), rate.normal_bps),
            (format!("{word}_minimum"), rate.minimum_bps),
        ]
    });
    let rates = rates.filter_map(|(key, bps)| Some((key, FileOption::Value(bps?.to_string()))));
    name.chain(rates).collect()
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

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the checks of schedules")]
fn now() -> Timestamp {
    Timestamp::now()
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
            ("[[reflector]]\nname = 5\n", 2, "name: it is of type integer"),
            ("[[reflector]]\nnmae = \"a\"\n", 2, "unknown key \"nmae\"; did you mean \"name\"?"),
        ] {
            let (seen, problem) = fault(text);
            assert!(seen == line && problem.starts_with(said), "{text}: {seen}: {problem}");
        }
    }
}
