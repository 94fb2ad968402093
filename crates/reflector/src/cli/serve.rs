//! `reflector serve`: loads the configuration, sets up the program's log, and runs the server until it ends.

use std::io::IsTerminal;

use paramedic_engines::memory;
use paramedic_engines::thread_limit::ThreadLimitReached;
use paramedic_host::unix_socket::UnixSocketError;
use paramedic_host::{log, runtime};

use super::load;
use super::output::print_line;
use super::state::{identity, with_state, with_state_as_it_is};
use crate::audit::AuditError;
use crate::config::{AllFlags, Config};
use crate::failure::{Exit, Failure};
use crate::server::{self, ListenError, MetricsListenError};
use crate::store::StoreError;

/// The number of worker threads of the async runtime. They do not move test data.
const WORKERS: usize = 2;

pub(super) fn run(flags: &AllFlags) -> Result<(), Failure> {
    let config = load(&flags.values)?;
    let log_filter = log::start(&config.log, config.log_format, std::io::stderr().is_terminal(), std::io::stderr);
    let flags = flags.values.clone();
    let read = move || {
        let loaded = paramedic_host::config::load::<Config>(&flags)?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(with_state_as_it_is(loaded.config))
    };
    let reloader = server::ConfigReloader { read: Box::new(read), log_filter };
    let config = with_state(config)?;
    let key = identity(&config)?;
    memory::share_arenas();
    let listen = config.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // The workers, a thread for blocking work, the thread of the database, and one thread for each UDP port.
    let threads = WORKERS + 2 + config.listen.len();
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime::start(builder.worker_threads(WORKERS), threads).map_err(|error| {
        let hint = ThreadLimitReached::of(&error).map(ThreadLimitReached::hint);
        let try_ = hint.unwrap_or_else(|| "check the free memory of this machine".to_owned());
        Failure::new(Exit::Failed, "runtime", "the reflector cannot start", error, try_)
    })?;
    let ready = |addresses: &[std::net::SocketAddr]| {
        for address in addresses {
            print_line(&format!("listening on {address}"));
        }
    };
    runtime.block_on(server::serve(config, key, reloader, ready)).map_err(|error| {
        let error = match error.downcast::<StoreError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let error = match error.downcast::<AuditError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let error = match error.downcast::<UnixSocketError>() {
            Ok(error) => return no_admin_socket(&error),
            Err(error) => error,
        };
        let error = match error.downcast::<MetricsListenError>() {
            Ok(error) => return no_metrics(&error),
            Err(error) => error,
        };
        let error = match error.downcast::<ListenError>() {
            Ok(error) => return cannot_listen(&error),
            Err(error) => error,
        };
        let try_ =
            "check that no other program uses the port and that the disk has free space; `reflector config show --origin` shows the settings";
        Failure::new(Exit::Failed, "serve", format!("the reflector cannot serve on {listen}"), error, try_)
    })
}

fn no_admin_socket(error: &UnixSocketError) -> Failure {
    if let UnixSocketError::InUse { .. } = error {
        let try_ = "run `reflector status` to see the running reflector, or set another folder with --runtime-dir";
        return Failure::new(Exit::Failed, "already_running", "the reflector cannot serve", error, try_);
    }
    let try_ = "set another folder with --runtime-dir or REFLECTOR_RUNTIME_DIR, or run as the owner of this one";
    Failure::new(Exit::Usage, "runtime_dir", "the runtime folder cannot be used", error, try_)
}

fn no_metrics(error: &MetricsListenError) -> Failure {
    let exit = match error {
        MetricsListenError::Address(_) | MetricsListenError::Socket(UnixSocketError::InUse { .. }) => Exit::Failed,
        MetricsListenError::Socket(_) => Exit::Usage,
    };
    let try_ = "correct `metrics_listen`, or set it to off; `ss -tlpnx` lists the programs that listen";
    Failure::new(exit, "metrics_listen", "the reflector cannot serve its metrics", error, try_)
}

pub(super) fn cannot_listen(error: &ListenError) -> Failure {
    let try_ = match error {
        ListenError::NoSuchAddress(_) => {
            "correct `listen`; if the host gets that address later, as during boot, set listen_freebind = true"
        }
        ListenError::InUse(_) => "run `ss -tulpn` to find that program, or set another port in `listen`",
        ListenError::NotAllowed(_) => "set a port above 1023 in `listen`, or give the program CAP_NET_BIND_SERVICE",
        ListenError::Refused(..) | ListenError::NoneAvailable => {
            "run `reflector config show --origin` and correct `listen`"
        }
    };
    Failure::new(Exit::Failed, "listen", "the reflector cannot serve", error, try_)
}
