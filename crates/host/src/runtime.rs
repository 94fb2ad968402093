//! Starts the async runtime of a program. The runtime keeps working if the host later allows no further thread.

use std::io;
use std::time::Duration;

use paramedic_engines::thread_limit;
use tokio::runtime::{Builder, Runtime};

/// How long the runtime keeps idle threads for blocking work: in effect, for ever. If the host refuses a new thread,
/// blocking work waits for an existing one. If there is no thread at all, the runtime panics.
const KEEP_ALIVE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Builds the runtime, and starts one thread for blocking work. `threads` is the minimum number of threads that the
/// program needs: for the runtime, its database and its sockets. If the host does not allow so many, the error names
/// the limit.
pub fn start(builder: &mut Builder, threads: usize) -> io::Result<Runtime> {
    // The runtime itself panics if it cannot start its threads.
    thread_limit::check(threads)?;
    let runtime = builder.thread_keep_alive(KEEP_ALIVE).enable_all().build()?;
    runtime.block_on(async { tokio::task::spawn_blocking(|| ()).await }).map_err(io::Error::other)?;
    Ok(runtime)
}
