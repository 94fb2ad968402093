//! Fuzz targets for the input of operators: configuration files, and the lines that clients send to the reflector's
//! admin socket.

use std::fmt::Debug;
use std::path::Path;

use packetparamedic::config::Settings;
use paramedic_host::config::{ConfigError, Configuration, FlagValues, Loaded, Machine, load_on};
use reflector::config::Config;
use reflector::server::{read_request, write_request};

use crate::scratch;

/// Fuzz target: parses the input as a line that a client sends to the reflector's admin socket.
pub fn admin_line(input: &[u8]) {
    let Ok(line) = std::str::from_utf8(input) else { return };
    match read_request(line) {
        Ok(ask) => {
            let written = write_request(&ask).unwrap_or_else(|why| panic!("{ask:?} cannot be written: {why}"));
            assert_eq!(written.iter().position(|byte| *byte == b'\n'), Some(written.len() - 1), "one line");
            let again = std::str::from_utf8(&written).map(read_request);
            let again = again.unwrap_or_else(|why| panic!("{ask:?} is not UTF-8: {why}"));
            assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, String>(ask)));
        }
        Err(because) => assert!(!because.is_empty() && because.len() <= 500 + 2 * line.len()),
    }
}

/// Fuzz target: loads the input as a configuration file of the reflector.
pub fn config(input: &[u8]) {
    if let Some(config) = play_configuration::<Config>(input) {
        assert!(!config.listen.is_empty() && !config.name.is_empty());
        assert!(config.state_dir.is_absolute() && config.runtime_dir.is_absolute());
    }
}

/// Fuzz target: loads the input as a configuration file of the appliance.
pub fn appliance_config(input: &[u8]) {
    if let Some(settings) = play_configuration::<Settings>(input) {
        assert!(!settings.name.is_empty() && settings.state_dir.is_absolute());
        assert!(!settings.duration.is_zero() && settings.streams != Some(0));
    }
}

/// Loads the input as a configuration file and returns the configuration; `None` if the file is invalid. Asserts that
/// the text which `config show` prints loads as the same configuration.
fn play_configuration<C: Configuration + Debug>(input: &[u8]) -> Option<C> {
    scratch::in_folder(|folder| match load::<C>(folder, input) {
        Ok(loaded) => {
            let shown = loaded.show(false);
            let again = load::<C>(folder, shown.as_bytes());
            let again = again.unwrap_or_else(|why| panic!("{why}: what `config show` printed is refused:\n{shown}"));
            // The debug form contains every setting. Like `config show`, it omits the password of a URL.
            assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config), "{shown}");
            assert_eq!(loaded.show(true).lines().count(), shown.lines().count());
            assert!(loaded.files.contains(&folder.join(FILE)));
            Some(loaded.config)
        }
        Err(why) => {
            assert!(why.to_string().len() <= 2000 + 8 * input.len(), "{why}");
            None
        }
    })
}

const FILE: &str = "given.toml";

/// Loads `text` as the file that `--config` names. No environment variable is set.
fn load<C: Configuration>(folder: &Path, text: &[u8]) -> Result<Loaded<C>, ConfigError> {
    scratch::write(&folder.join(FILE), text);
    let mut flags = FlagValues::default();
    flags.config = Some(folder.join(FILE));
    let machine = Machine {
        env: &|_| None,
        variables: &[],
        etc_file: "/nonexistent/etc.toml".into(),
        home: Some("/nonexistent".into()),
        is_root: false,
        hostname: "host".to_owned(),
        exists: &|_| false,
        current_dir: folder.to_owned(),
    };
    load_on(&flags, &machine)
}
