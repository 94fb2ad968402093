//! A network namespace: created by ip(8), deleted on drop. With side effects: runs programs.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with a unique name.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace whose name ends in `role`.
    pub fn new(role: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("em{}-{}{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let created = Self { name };
        created.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(created)
    }

    /// The name of the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command in the namespace and returns its stdout. If the command fails, this is an error.
    pub fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        ip(&[&["netns", "exec", &self.name], command].concat())
    }

    /// Prepares a command that runs the program in the namespace.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args).stdin(Stdio::null());
        command
    }

    /// Calls `f` on a thread inside the namespace. Sockets and devices that `f` opens stay in the namespace.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let enter_and_call = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter the network namespace")?;
            f()
        };
        std::thread::scope(|scope| scope.spawn(enter_and_call).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // There is no remedy if this fails.
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Runs ip(8) and returns its stdout. If ip fails, this is an error.
pub(crate) fn ip(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().context("cannot run ip")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ip {}: {}", args.join(" "), stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
