//! `[[reflector]]`: the name of a paired reflector.

use paramedic_appliance::app::ReflectorName;
use paramedic_link::{EndpointId, PeerText};
use toml::de::DeTable;

use super::super::options::FileOption;
use super::text::{FileFault, FileText, in_order, text_of};

/// The valid keys of a `[[reflector]]` table in a configuration file.
const KEYS: [&str; 2] = ["endpoint_id", "name"];

pub(super) fn parse(file: &FileText<'_>, at: usize, table: &DeTable<'_>) -> Result<ReflectorName, FileFault> {
    let (mut endpoint_id, mut name) = (None, None);
    for (key, value) in in_order(table) {
        let text = || text_of(value.get_ref()).map_err(|problem| file.fault_of(key, &problem));
        match &**key.get_ref() {
            "endpoint_id" => {
                let id = text()?.parse::<EndpointId>().map_err(|error| file.fault_of(key, &error.to_string()))?;
                endpoint_id = Some(id);
            }
            "name" => name = Some(PeerText::new(&text()?)),
            _ => return Err(file.unknown(key, &KEYS)),
        }
    }
    match (endpoint_id, name) {
        (Some(endpoint_id), Some(name)) => Ok(ReflectorName { endpoint_id, name }),
        (None, _) => Err(file.fault(at, "reflector: endpoint_id is missing; `packetparamedic reflectors` prints it")),
        (_, None) => Err(file.fault(at, "reflector: name is missing")),
    }
}

pub(super) fn rows(reflector: &ReflectorName) -> Vec<(String, FileOption)> {
    let rows = [("name", reflector.name.as_str().to_owned()), ("endpoint_id", reflector.endpoint_id.to_string())];
    rows.map(|(key, value)| (key.to_owned(), FileOption::Value(value))).into()
}
