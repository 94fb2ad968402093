//! Starts the async runtime of a program such that it keeps working on a host that allows no more threads.

use std::io;
use std::time::Duration;

use paramedic_engines::thread_limit;
use tokio::runtime::{Builder, Runtime};

/// How long idle threads for blocking work are kept: for ever. As long as one thread exists, blocking work waits for it
/// if the host refuses another. Without any thread, the runtime panics.
const KEEP_ALIVE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Builds the runtime, and starts one thread for blocking work. `threads` is the number of threads that the program
/// needs at least: those of the runtime, of its database and of its sockets. If the host does not allow so many, the
/// error names the limit.
pub fn start(builder: &mut Builder, threads: usize) -> io::Result<Runtime> {
    // The runtime itself panics if it cannot start its threads.
    thread_limit::check(threads)?;
    let runtime = builder.thread_keep_alive(KEEP_ALIVE).enable_all().build()?;
    runtime.block_on(async { tokio::task::spawn_blocking(|| ()).await }).map_err(io::Error::other)?;
    Ok(runtime)
}
