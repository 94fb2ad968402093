//! What the operator says to a reflector: its configuration file.

use std::ffi::OsString;
use std::path::Path;

use reflector::config::{self, ConfigError, Flags, Loaded};

use crate::scratch;

/// A configuration file of the reflector.
pub fn config(input: &[u8]) {
    scratch::in_folder(|folder| match load(folder, input) {
        Ok(loaded) => {
            let shown = loaded.show(false);
            let again = load(folder, shown.as_bytes());
            let again = again.unwrap_or_else(|why| panic!("{why}: what `config show` printed is refused:\n{shown}"));
            assert_eq!(again.config, loaded.config, "{shown}");
            assert_eq!(loaded.show(true).lines().count(), shown.lines().count());
            assert!(!loaded.config.listen.is_empty() && !loaded.config.name.is_empty());
            assert!(loaded.config.state_dir.is_absolute() && loaded.config.runtime_dir.is_absolute());
            let file = folder.join(FILE);
            assert!(loaded.files.contains(&file));
        }
        Err(why) => assert!(why.to_string().len() <= 2000 + 8 * input.len(), "{why}"),
    });
}

const FILE: &str = "reflector.toml";

/// Loads this text as the file of `--config`, with nothing in the environment.
fn load(folder: &Path, text: &[u8]) -> Result<Loaded, ConfigError> {
    scratch::write(&folder.join(FILE), text);
    let mut flags = Flags::default();
    flags.config = Some(folder.join(FILE));
    let home = |name: &str| (name == "HOME").then(|| OsString::from("/nonexistent"));
    config::load(&flags, &home)
}
