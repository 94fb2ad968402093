//! Reads the state of the running server, for `status`, `health` and the metrics.

use std::fs;

use paramedic_host::version;
use rustix::time::ClockId;

use super::{Lifecycle, Server, lock};
use crate::status::{ProcessUse, Status, WritableStores};

/// The state of the server at present.
pub(super) fn read(server: &Server) -> Status {
    let stage = *server.lifecycle.borrow();
    let problems = server.problems();
    let state = match stage {
        Lifecycle::Serving if !problems.is_empty() => "faulted",
        Lifecycle::Serving => "serving",
        Lifecycle::Draining | Lifecycle::Stopping => "draining",
    };
    let can_write = {
        let (audit, database) = (server.audit.fault(), server.store.fault());
        WritableStores { audit: audit.borrow().is_none(), database: database.borrow().is_none() }
    };
    let (sessions, limits) = {
        let sessions = server.sessions();
        (sessions.snapshot(server.now()), sessions.limits().clone())
    };
    Status {
        version: version::VERSION.to_owned(),
        commit: version::COMMIT.map(str::to_owned),
        endpoint_id: server.id,
        name: server.config().name.to_string(),
        uptime_s: server.began.elapsed().as_secs(),
        state: state.to_owned(),
        problems,
        can_write,
        data_modes: limits.data_modes,
        engines: limits.engines,
        engines_lacking: server.unavailable.clone(),
        links: lock(&server.links).len(),
        peers: server.peers.list().len(),
        handshakes: server.counts.handshakes(),
        sessions,
        max_bytes_per_day_total: limits.max_bytes_per_day_total,
        payload_bytes: server.counts.payload_bytes(),
        probe_dwell: server.counts.probe_dwell(),
        datagrams_from_elsewhere: server.datagrams_from_elsewhere(),
        refused: lock(&server.throttle).refused(),
        process: process_use(),
        metrics: server.metrics.clone(),
    }
}

/// The resources that this process uses. A value that /proc does not show is 0.
fn process_use() -> ProcessUse {
    let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    // One of the descriptors is that of the folder itself, which is open while it is read.
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    ProcessUse {
        cpu_us: u64::try_from(cpu.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(cpu.tv_nsec).unwrap_or(0) / 1_000,
        resident_bytes: value("VmRSS:") * 1024,
        descriptors: u64::try_from(descriptors).unwrap_or(u64::MAX),
        threads: value("Threads:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_something_of_everything() {
        let used = process_use();
        assert!(used.cpu_us > 0 && used.resident_bytes > 100_000 && used.threads > 0, "{used:?}");
        assert!(used.descriptors >= 3, "{used:?}");
    }
}
