//! Scenario files: a path between an appliance and a reflector, and the test that runs over it. Pure.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::direction::Way;
use crate::settings::DirectionSettings;

/// A path between an appliance and a reflector, and the test that runs over it, as a scenario file describes them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// A description of the path in one line.
    pub title: String,
    /// The IP version that the test uses.
    #[serde(default)]
    pub family: Family,
    /// The hops of the path, from the appliance to the reflector: one to three. A hop without `up` and `down` is a
    /// plain cable.
    #[serde(rename = "hop")]
    pub hops: Vec<Hop>,
    /// The rate of an additional UDP run in each direction, in Mbit/s; `None`: no such run.
    pub udp_mbit: Option<f64>,
    /// The number of parallel TCP streams; `None`: the default of the program.
    pub streams: Option<u16>,
    /// Changes of hops during the run.
    #[serde(default, rename = "change")]
    pub changes: Vec<Change>,
}

/// The IP version of a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// The test uses IPv4.
    #[default]
    Ipv4,
    /// The test uses IPv6.
    Ipv6,
}

/// The connection between two neighbouring hosts of a path.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// The settings towards the reflector; if both directions are absent, the hop is a plain cable.
    pub up: Option<DirectionSettings>,
    /// The settings towards the appliance; if both directions are absent, the hop is a plain cable.
    pub down: Option<DirectionSettings>,
    /// The MTU of the devices at both ends of the hop, in bytes; `None`: 1500.
    pub mtu: Option<usize>,
}

impl Hop {
    /// Whether the packets of this hop pass an emulated link.
    pub fn is_emulated(&self) -> bool {
        self.up.is_some() || self.down.is_some()
    }

    /// The settings of the hop in a direction; `None` if the scenario has none.
    pub fn direction(&self, way: Way) -> Option<&DirectionSettings> {
        match way {
            Way::Up => self.up.as_ref(),
            Way::Down => self.down.as_ref(),
        }
    }
}

/// New settings of a hop during the run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The number of the hop that changes, counted from 1.
    pub hop: usize,
    /// The phase of the test in which the change happens: `idle`, `download` or `upload`.
    pub phase: String,
    /// When the change happens, in seconds since the phase began.
    pub after_s: f64,
    /// The new settings towards the reflector; `None`: unchanged.
    pub up: Option<DirectionSettings>,
    /// The new settings towards the appliance; `None`: unchanged.
    pub down: Option<DirectionSettings>,
}

impl Scenario {
    /// Reads a scenario from TOML text. An unknown or wrong key is an error that names it.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let scenario = toml::from_str::<Self>(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Reads every scenario file of a folder, in the order of the file names. Returns each scenario with the name of
    /// its file.
    pub fn read_all(folder: &Path) -> anyhow::Result<Vec<(String, Self)>> {
        let files = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let files = files.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        let mut files =
            files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "toml")).collect::<Vec<_>>();
        files.sort();
        let read = |file: std::path::PathBuf| {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file)?;
            anyhow::Ok((name, Self::parse(&text)?))
        };
        files.into_iter().map(|file| read(file.clone()).with_context(|| file.display().to_string())).collect()
    }

    fn check(&self) -> anyhow::Result<()> {
        if !(1..=3).contains(&self.hops.len()) {
            bail!("the path has {} hops; valid: 1 to 3", self.hops.len());
        }
        let of_hops = self.hops.iter().enumerate().map(|(at, hop)| (format!("hop {}", at + 1), &hop.up, &hop.down));
        let of_changes = self.changes.iter().map(|change| ("change".to_owned(), &change.up, &change.down));
        for (place, up, down) in of_hops.chain(of_changes) {
            for (way, settings) in [("up", up), ("down", down)] {
                let Some(settings) = settings else { continue };
                settings.check().map_err(|error| anyhow::anyhow!("{place}.{way}: {error}"))?;
            }
        }
        for change in &self.changes {
            let hop = change.hop.checked_sub(1).and_then(|at| self.hops.get(at));
            if !hop.is_some_and(Hop::is_emulated) {
                bail!("change: hop {} is not an emulated hop: name a hop with up or down", change.hop);
            }
            if !["idle", "download", "upload"].contains(&change.phase.as_str()) {
                bail!("change: phase {:?}: valid: idle, download, upload", change.phase);
            }
        }
        Ok(())
    }

    /// The lowest rate of a hop in a direction, which is the rate of the path, in Mbit/s; `None` if no hop limits it.
    pub fn rate_mbit(&self, way: Way) -> Option<f64> {
        let rates = self.hops.iter().filter_map(|hop| hop.direction(way)?.rate_mbit);
        rates.min_by(f64::total_cmp)
    }

    /// The sum of the propagation delays of all hops in both directions, in milliseconds.
    pub fn round_trip_ms(&self) -> f64 {
        let directions = self.hops.iter().flat_map(|hop| [&hop.up, &hop.down]).flatten();
        directions.map(|direction| direction.delay_ms).sum()
    }

    /// The settings for this direction, hop by hop along the path. Leaves out hops that have none.
    pub fn directions(&self, way: Way) -> impl Iterator<Item = &DirectionSettings> {
        self.hops.iter().filter_map(move |hop| hop.direction(way))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "title = 'a line'\n[[hop]]\n[[hop]]\nup = { rate_mbit = 10, queue_ms = 100, delay_ms = 5 }\n";

    #[test]
    fn a_scenario_is_read() {
        let scenario = Scenario::parse(TEXT).unwrap();
        assert_eq!((scenario.hops.len(), scenario.family), (2, Family::Ipv4));
        assert_eq!((scenario.rate_mbit(Way::Up), scenario.rate_mbit(Way::Down)), (Some(10.0), None));
        assert_eq!(scenario.round_trip_ms(), 5.0);
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused_by_name() {
        let error = |text: &str| format!("{:#}", Scenario::parse(text).unwrap_err());
        let unknown = error(&TEXT.replace("delay_ms", "dalay_ms"));
        assert!(unknown.contains("unknown field `dalay_ms`") && unknown.contains("delay_ms"), "{unknown}");
        assert!(error(&format!("sead = 1\n{TEXT}")).contains("unknown field `sead`"));
        assert!(error(&TEXT.replace("= 5 ", "= -5 ")).contains("hop 2.up: delay_ms = -5"));
        assert!(error("title = 'a'\nhop = []\n").contains("0 hops"));
        let change = "[[change]]\nhop = 1\nphase = 'download'\nafter_s = 1\n";
        assert!(error(&format!("{TEXT}{change}")).contains("hop 1 is not an emulated hop"));
    }

    #[test]
    fn the_matrix_has_each_value_of_an_axis_at_least_twice() {
        let cells = Scenario::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
        assert_eq!(cells.len(), 24);
        let at_least_twice = |what: &str, is: &dyn Fn(&Scenario) -> bool| {
            let count = cells.iter().filter(|(_, scenario)| is(scenario)).count();
            assert!(count >= 2, "{count} cells with {what}");
        };
        let any = |scenario: &Scenario, is: &dyn Fn(&DirectionSettings) -> bool| {
            Way::BOTH.into_iter().any(|way| scenario.directions(way).any(is))
        };
        for mbit in [1.0, 10.0, 100.0, 1000.0] {
            at_least_twice(&format!("{mbit} Mbit/s"), &|cell| any(cell, &|link| link.rate_mbit == Some(mbit)));
        }
        for ms in [0.0, 20.0, 100.0, 200.0] {
            at_least_twice(&format!("a round trip of {ms} ms"), &|cell| cell.round_trip_ms() == ms);
        }
        for percent in [0.1, 1.0, 3.0] {
            at_least_twice(&format!("{percent} % loss"), &|cell| any(cell, &|link| link.loss_percent == percent));
        }
        for ms in [0.0, 20.0, 100.0, 1000.0] {
            at_least_twice(&format!("a queue of {ms} ms"), &|cell| any(cell, &|link| link.queue_ms == Some(ms)));
        }
        at_least_twice("a slower upload", &|cell| cell.rate_mbit(Way::Up) < cell.rate_mbit(Way::Down));
        at_least_twice("a slower download", &|cell| cell.rate_mbit(Way::Down) < cell.rate_mbit(Way::Up));
        at_least_twice("reordering", &|cell| any(cell, &|link| link.reorder.is_some()));
        at_least_twice("duplication", &|cell| any(cell, &|link| link.duplicate_percent > 0.0));
        at_least_twice("jitter", &|cell| any(cell, &|link| link.jitter_ms > 0.0));
        at_least_twice("burst loss", &|cell| any(cell, &|link| link.burst_loss.is_some()));
        at_least_twice("a policer", &|cell| any(cell, &|link| link.policer.is_some()));
        for hops in 1..=3 {
            at_least_twice(&format!("{hops} hops"), &|cell| cell.hops.len() == hops);
        }
        for family in [Family::Ipv4, Family::Ipv6] {
            at_least_twice(&format!("{family:?}"), &|cell| cell.family == family);
        }
        at_least_twice("datagrams", &|cell| cell.udp_mbit.is_some());
    }
}
