//! Finds mistyped names of settings. A mistyped limit in a file or in the environment must be reported, not ignored.
//! This module does no I/O.

use super::{ConfigError, Configuration, Environment};

/// The setting whose name is most similar to a mistyped key; `None` if no name is similar.
pub(super) fn nearest<C: Configuration>(key: &str) -> Option<&'static str> {
    // The mistyped key may also be the name of the setting's variable or flag.
    let key = key.to_lowercase().replace('-', "_");
    let prefix = format!("{}_", C::PROGRAM);
    let key = key.strip_prefix(&prefix).unwrap_or(&key);
    nearest_name(key, C::settings().iter().map(|setting| setting.name))
}

/// The name in `names` that is most similar to `key`; `None` if no name is similar.
pub fn nearest_name<'a>(key: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = names.into_iter().map(|name| (strsim::jaro_winkler(key, name), name));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// Fails if a variable has the program's prefix, but the program does not read it. Variables that a container manager
/// sets are accepted. `variables` are the names of all variables that are set.
pub(super) fn check_variables<C: Configuration>(variables: &[String], env: Environment<'_>) -> Result<(), ConfigError> {
    let prefix = format!("{}_", C::PROGRAM.to_uppercase());
    let other = C::other_variables();
    for variable in variables {
        let Some(name) = variable.strip_prefix(&prefix) else { continue };
        let is_setting = C::settings().iter().any(|setting| setting.env == variable);
        let is_known = is_setting || other.contains(&variable.as_str());
        if is_known || is_service_link(name, &env(variable).unwrap_or_default().to_string_lossy()) {
            continue;
        }
        let nearest = nearest::<C>(variable);
        let nearest = C::settings().iter().find(|setting| Some(setting.name) == nearest).map(|setting| setting.env);
        return Err(ConfigError::UnknownVariable { variable: variable.clone(), nearest });
    }
    Ok(())
}

/// Whether a container manager set this variable. `name` is the part of the variable's name after the program's prefix.
/// Kubernetes sets variables such as `NAME_SERVICE_HOST` and `NAME_PORT_4000_TCP_ADDR` in each container, for every
/// service of the namespace. Docker does so for container links. If the name of a service begins with the program's
/// name, these variables have the program's prefix (`REFLECTOR_METRICS_SERVICE_HOST`).
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_service_link(name: &str, value: &str) -> bool {
    let has_word = |word: &str| name == word || name.ends_with(&format!("_{word}"));
    // The words are followed by the name of a port, as in `SERVICE_PORT_HTTP`.
    let has_words = |words: &str| name.starts_with(&format!("{words}_")) || name.contains(&format!("_{words}_"));
    if has_word("SERVICE_HOST") || has_word("SERVICE_PORT") || has_words("SERVICE_PORT") {
        return true;
    }
    if has_word("PORT") && value.contains("://") {
        return true;
    }
    let ends = ["", "_PROTO", "_PORT", "_ADDR"];
    let of_port = ends.iter().find_map(|end| {
        let rest = name.strip_suffix(end)?;
        ["_TCP", "_UDP", "_SCTP"].iter().find_map(|protocol| rest.strip_suffix(protocol))
    });
    let number = of_port.and_then(|of_port| {
        of_port.strip_prefix("PORT_").or_else(|| of_port.rsplit_once("_PORT_").map(|(_, number)| number))
    });
    number.is_some_and(|number| number.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_container_managers_are_told_from_mistyped_ones() {
        for (name, value) in [
            ("SERVICE_HOST", "10.0.0.11"),
            ("SERVICE_PORT", "4000"),
            ("SERVICE_PORT_LINK", "4000"),
            ("METRICS_SERVICE_HOST", "10.0.0.11"),
            ("METRICS_SERVICE_PORT_HTTP", "4001"),
            ("PORT", "tcp://10.0.0.11:4000"),
            ("METRICS_PORT", "tcp://10.0.0.11:4001"),
            ("PORT_4000_TCP", "tcp://10.0.0.11:4000"),
            ("PORT_4000_TCP_PROTO", "tcp"),
            ("PORT_4000_UDP_PORT", "4000"),
            ("METRICS_PORT_4001_TCP_ADDR", "10.0.0.11"),
        ] {
            assert!(is_service_link(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("PORT", "4000"),
            ("LISTEN_PORT", "4000"),
            ("PORT_RANGE", "5201-5299"),
            ("DATA_PORT", "5201-5299"),
            ("HOST", "0.0.0.0"),
            ("SERVICE", "reflector"),
            ("PORT_TCP", "4000"),
            ("PORT_MAIN_TCP", "4000"),
            ("MAX_QEUE", "3"),
            ("", ""),
        ] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }
}
