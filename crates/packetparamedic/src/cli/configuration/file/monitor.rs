//! `[[monitor]]`: its keys are the options of `packetparamedic monitor add`.

use paramedic_appliance::app::ConfiguredMonitor;
use paramedic_appliance::monitor::{Monitor, MonitorError, MonitorTarget};
use paramedic_report::quantity;
use toml::de::DeTable;

use super::super::super::values::time;
use super::super::options::FileOption;
use super::text::{ENABLED, FileFault, FileText, disabled, in_order, switch_of, text_of, value_of};

/// The valid keys of a `[[monitor]]` table in a configuration file.
const KEYS: [&str; 4] = ["name", "target", "interval", ENABLED];

pub(super) fn parse(file: &FileText<'_>, at: usize, table: &DeTable<'_>) -> Result<ConfiguredMonitor, FileFault> {
    let (mut name, mut target, mut interval, mut enabled) = (None, None, None, true);
    for (key, value) in in_order(table) {
        let wrong = |problem: &str| file.fault_of(key, problem);
        let text = || text_of(value.get_ref()).map_err(|problem| wrong(&problem));
        match &**key.get_ref() {
            "name" => name = Some(text()?),
            "target" => {
                let parsed = text()?.parse::<MonitorTarget>();
                target = Some(parsed.map_err(|error| wrong(&error.to_string()))?);
            }
            "interval" => {
                let text = value_of(value.get_ref()).map_err(|problem| wrong(&problem))?;
                interval = Some(time(&text).map_err(|problem| wrong(&problem))?);
            }
            ENABLED => enabled = switch_of(value.get_ref()).map_err(|problem| wrong(&problem))?,
            _ => return Err(file.unknown(key, &KEYS)),
        }
    }
    let missing = |key: &str| file.fault(at, format!("monitor: {key} is missing"));
    let monitor =
        Monitor::new(&name.ok_or_else(|| missing("name"))?, target.ok_or_else(|| missing("target"))?, interval);
    monitor.check().map_err(|error| {
        let key = if matches!(error, MonitorError::Interval { .. }) { "interval" } else { "name" };
        let given = table.iter().find(|(given, _)| *given.get_ref() == key);
        given.map_or_else(
            || file.fault(at, format!("monitor: {error}")),
            |(key, _)| file.fault_of(key, &error.to_string()),
        )
    })?;
    Ok(ConfiguredMonitor { enabled, monitor })
}

pub(super) fn rows(configured: &ConfiguredMonitor) -> Vec<(String, FileOption)> {
    let Monitor { name, target, .. } = &configured.monitor;
    let interval = quantity::exact_duration(configured.monitor.interval());
    let rows = [("name", name.clone()), ("target", target.to_string()), ("interval", interval)];
    let rows = rows.map(|(key, value)| (key.to_owned(), FileOption::Value(value)));
    rows.into_iter().chain(disabled(configured.enabled)).collect()
}
