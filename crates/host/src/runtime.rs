//! Starting the async runtime of a program such that it keeps working on a host that allows no more threads.

use std::io;
use std::time::Duration;

use paramedic_engines::thread_limit;
use tokio::runtime::{Builder, Runtime};

/// Idle threads for blocking work are never ended: as long as there is one, work waits for it where the host refuses
/// another. Without any, the runtime panics.
const KEEP_ALIVE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Builds the runtime with one thread for blocking work. Fails with an explained error where the host does not allow
/// `threads`, which are all that the program cannot do without: those of the runtime, of its database, of its sockets.
pub fn start(builder: &mut Builder, threads: usize) -> io::Result<Runtime> {
    // The runtime itself panics where it cannot start its threads.
    thread_limit::check(threads)?;
    let runtime = builder.thread_keep_alive(KEEP_ALIVE).enable_all().build()?;
    runtime.block_on(async { tokio::task::spawn_blocking(|| ()).await }).map_err(io::Error::other)?;
    Ok(runtime)
}
