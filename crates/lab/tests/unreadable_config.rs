//! Tests configuration files that a program has no permission to read. Both programs warn if it is the user's own file,
//! and fail if `--config` names the file.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use lab::Programs;

const NOBODY: &str = "65534";

/// Runs a program as an unprivileged user. Returns the exit code, and stdout and stderr.
fn as_nobody(program: &Path, config_home: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program).args(args).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    let output = command.env("XDG_CONFIG_HOME", config_home).current_dir("/").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_users_own_file_may_be_unreadable_and_a_named_one_may_not() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can run a program as another user");
        return;
    }
    let home = tempfile::TempDir::new().unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    for name in ["reflector", "packetparamedic"] {
        // The unprivileged user may be unable to enter the target folder.
        let program = home.path().join(name);
        assert!(Command::new("cp").arg(Programs::built().path(name)).arg(&program).status().unwrap().success());
        // A folder that may not be entered, and a file that may not be read.
        for (folder, folder_mode, file_mode) in [("closed", 0o700, 0o644), ("open", 0o755, 0o600)] {
            let config_home = home.path().join(folder);
            let file = config_home.join(format!("packetparamedic/{name}.toml"));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "log = 'debug'\n").unwrap();
            fs::set_permissions(&file, Permissions::from_mode(file_mode)).unwrap();
            fs::set_permissions(&config_home, Permissions::from_mode(folder_mode)).unwrap();
            let (code, stdout, stderr) = as_nobody(&program, &config_home, &["config", "check"]);
            assert_eq!(code, Some(0), "{name} {folder}: {stdout}{stderr}");
            let path = file.to_str().unwrap();
            assert!(stderr.contains("warning: ") && stderr.contains(path), "{name} {folder}: {stderr}");
            assert!(!stdout.contains(path), "{name} {folder}: it was not read: {stdout}");
            let named = as_nobody(&program, Path::new("/nonexistent"), &["config", "check", "--config", path]);
            assert_eq!(named.0, Some(2), "{name} {folder}: {named:?}");
        }
    }
}
