//! `[plan]`: the rates that the internet contract promises. Its keys are the options of `packetparamedic plan set`.

use std::collections::BTreeMap;

use paramedic_appliance::plan::{Plan, PromisedRate};
use toml::de::DeValue;

use super::super::super::values::rate;
use super::super::options::FileOption;
use super::text::{FileFault, FileText, in_order, value_of};

/// The valid keys of the `[plan]` table in a configuration file.
const KEYS: [&str; 7] =
    ["name", "download", "download_normal", "download_minimum", "upload", "upload_normal", "upload_minimum"];

pub(super) fn parse(file: &FileText<'_>, at: usize, value: &DeValue<'_>) -> Result<Plan, FileFault> {
    let DeValue::Table(table) = value else {
        return Err(file.fault(at, "plan is a table: write [plan]"));
    };
    let (mut name, mut rates) = (None, BTreeMap::new());
    for (key, value) in in_order(table) {
        let of_key = &**key.get_ref();
        let wrong = |problem: String| file.fault_of(key, &problem);
        let Some(known) = KEYS.into_iter().find(|known| *known == of_key) else {
            return Err(file.unknown(key, &KEYS));
        };
        let text = value_of(value.get_ref()).map_err(wrong)?;
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

pub(super) fn rows(plan: &Plan) -> Vec<(String, FileOption)> {
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
