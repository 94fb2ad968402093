//! What the reflector offers: the engines that can run on its host, and the configured limits.

use std::os::unix::fs::DirBuilderExt;

use anyhow::Context;
use paramedic_engines::Engine;
use paramedic_engines::engine::Unavailable;
use paramedic_link::test_spec::{DataMode, EngineId};

use crate::config::Config;
use crate::sessions::Limits;
use crate::status::UnavailableEngine;

/// Checks each configured engine. Returns the engines that can run on this host, and the engines that cannot, each with
/// the reason. Empties the working folder of the engines first.
pub(super) async fn offered(config: &Config) -> anyhow::Result<(Vec<&'static dyn Engine>, Vec<UnavailableEngine>)> {
    let scratch = config.scratch_dir();
    // A killed reflector may have left files in this folder.
    if let Err(error) = std::fs::remove_dir_all(&scratch)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "an old working folder can't be removed");
    }
    // Fails if another user creates the folder in the meantime.
    let made = std::fs::DirBuilder::new().mode(0o700).create(&scratch);
    made.with_context(|| format!("cannot create the folder {}", scratch.display()))?;
    let (mut engines, mut unavailable) = (Vec::new(), Vec::new());
    for engine in paramedic_host::engines::ENGINES.iter().copied().filter(|engine| config.wants(engine.id())) {
        let is_direct_alone = engine.data_modes() == [DataMode::DirectEphemeral];
        let fit = if is_direct_alone && !config.offers_direct() {
            let because = "needs direct mode, which this reflector does not offer".to_owned();
            Err(Unavailable { because, hint: "set mode = \"direct_ephemeral\"".to_owned() })
        } else {
            let scratch = scratch.clone();
            tokio::task::spawn_blocking(move || engine.check_server(&scratch)).await?
        };
        match (fit, EngineId::try_from(engine.id())) {
            (Err(Unavailable { because, hint }), Ok(id)) => {
                tracing::warn!(engine = %id, %because, "not offered");
                unavailable.push(UnavailableEngine { engine: id, because, try_: hint });
            }
            _ => engines.push(engine),
        }
    }
    Ok((engines, unavailable))
}

/// The session limits of the configuration, with the engines that are offered.
pub(super) fn limits(config: &Config, engines: &[&'static dyn Engine]) -> Limits {
    let direct = config.offers_direct();
    let mut data_modes = vec![DataMode::Tunneled];
    if direct {
        data_modes.push(DataMode::DirectEphemeral);
    }
    let engines =
        engines.iter().filter_map(|engine| Some((EngineId::try_from(engine.id()).ok()?, engine.data_modes())));
    Limits {
        max_concurrent_tests: config.max_concurrent_tests,
        max_test_duration: config.max_test_duration,
        max_streams: config.max_streams,
        max_tests_per_hour: config.max_tests_per_hour,
        max_bytes_per_day: config.max_bytes_per_day,
        max_bytes_per_day_total: config.max_bytes_per_day_total,
        max_queue: config.max_queue,
        max_monitors: config.max_monitors,
        data_ports: direct.then(|| config.data_port_range.clone()),
        data_modes,
        engine_modes: engines.clone().map(|(id, modes)| (id, modes.to_vec())).collect(),
        engines: engines.map(|(id, _)| id).collect(),
        ..Limits::default()
    }
}
