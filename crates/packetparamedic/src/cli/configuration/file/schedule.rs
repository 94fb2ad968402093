//! `[[schedule]]`: its keys are the options of `packetparamedic schedule add`. Reads the clock, because the checks of a
//! schedule need the present time.

use jiff::Timestamp;
use paramedic_appliance::app::ConfiguredSchedule;
use toml::de::{DeTable, DeValue};

use super::super::options::{self, FileOption, OptionFault};
use super::text::{ENABLED, FileFault, FileText, disabled, in_order, switch_of, value_of};

pub(super) fn parse(file: &FileText<'_>, at: usize, table: &DeTable<'_>) -> Result<ConfiguredSchedule, FileFault> {
    let known = options::keys();
    let mut keys = known.iter().map(String::as_str).collect::<Vec<_>>();
    keys.push(ENABLED);
    let (mut enabled, mut given) = (true, Vec::new());
    let entries = in_order(table);
    for (key, value) in &entries {
        let name = &**key.get_ref();
        let wrong = |problem: String| file.fault_of(key, &problem);
        if !keys.contains(&name) {
            return Err(file.unknown(key, &keys));
        }
        if name == ENABLED {
            enabled = switch_of(value.get_ref()).map_err(wrong)?;
            continue;
        }
        let option = match value.get_ref() {
            DeValue::Boolean(value) => FileOption::Flag(*value),
            DeValue::Float(number) => FileOption::Value(number.as_str().to_owned()),
            other => FileOption::Value(value_of(other).map_err(wrong)?),
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
            Some((key, _)) => file.fault_of(key, &problem),
            None => file.fault(at, format!("schedule: {problem}")),
        }
    })?;
    Ok(ConfiguredSchedule { enabled, schedule })
}

pub(super) fn rows(configured: &ConfiguredSchedule) -> Vec<(String, FileOption)> {
    options::options_of(&configured.schedule).into_iter().chain(disabled(configured.enabled)).collect()
}

#[expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the checks of schedules")]
fn now() -> Timestamp {
    Timestamp::now()
}
