//! Outages: when an outage begins and ends, and what was still reachable during it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// After this many lost probes in a row, a target is suspected to be unreachable.
const LOST_IN_A_ROW: u32 = 3;

/// The properties of a monitored target that matter for outages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedTarget {
    /// The name of the monitor.
    pub name: String,
    /// Whether the target is the default gateway. All other targets are beyond the gateway.
    pub is_gateway: bool,
    /// Whether the target counts as unreachable only if a connection to it fails too, because a path may drop only
    /// datagrams.
    pub needs_connection_check: bool,
}

/// An outage of one or more monitored targets. All times are since boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The id of the outage, a UUIDv7.
    pub id: Uuid,
    /// When the first unanswered probe of the outage was sent.
    pub began: Duration,
    /// When the outage ended: the sending time of the first probe that was answered again, or the time of another
    /// event, such as a pause of the monitor. `None` while the outage lasts.
    pub ended: Option<Duration>,
    /// The names of the monitors whose target was not reachable.
    pub failed: BTreeSet<String>,
    /// The names of the monitors whose target was reachable during the whole outage.
    pub reachable: BTreeSet<String>,
    /// What failed in the outage.
    pub scope: OutageScope,
}

/// The extent of an outage, judged by what was still reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutageScope {
    /// No target was reachable, not even the gateway.
    Everything,
    /// The gateway was reachable, and no target beyond it.
    BeyondGateway,
    /// Some targets failed, and other targets beyond the gateway were reachable.
    Target,
    /// The gateway did not answer, and targets beyond it were reachable.
    Gateway,
    /// No other target was reachable, and nothing is known about the gateway, so the extent is not known.
    Unknown,
}

impl OutageScope {
    /// All scopes, each with its name in documents.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Everything, "everything"),
        (Self::BeyondGateway, "beyond_gateway"),
        (Self::Target, "target"),
        (Self::Gateway, "gateway"),
        (Self::Unknown, "unknown"),
    ];

    /// The name of the scope in documents.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, _)| *own == self).map_or("", |(_, word)| word)
    }

    /// Parses the name of a scope.
    pub fn from_word(word: &str) -> Result<Self, UnknownScope> {
        let known = Self::ALL.iter().find(|(_, own)| *own == word);
        known.map(|(scope, _)| *scope).ok_or_else(|| UnknownScope { word: word.to_owned() })
    }
}

/// The error for a word that is not the name of a scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not a scope of an outage")]
pub struct UnknownScope {
    word: String,
}

/// Whether a target is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Not known: the target is not probed, or none of its probes is decided yet.
    Unknown,
    /// The last decided probe of the target, sent at `answered`, was answered.
    Up { answered: Duration },
    /// The last `lost` probes of the target were lost; the first of these was sent at `since`.
    Failing { since: Duration, lost: u32 },
    /// The target has not been reachable since this time.
    Down { since: Duration },
}

/// Finds outages from the probes of all targets together.
#[derive(Debug, Default)]
pub struct OutageWatch {
    targets: BTreeMap<Uuid, (WatchedTarget, Reach)>,
    open: Option<Outage>,
    /// When the last outage ended. The next outage begins at this time or later, so two outages never overlap.
    last_end: Duration,
}

impl OutageWatch {
    /// Replaces the watched targets. A target that is already watched keeps its state. Returns the outage if the new
    /// targets changed it.
    #[must_use]
    pub fn set_targets(&mut self, targets: BTreeMap<Uuid, WatchedTarget>, now: Duration) -> Option<Outage> {
        self.targets.retain(|id, _| targets.contains_key(id));
        for (id, target) in targets {
            let reach = self.targets.get(&id).map_or(Reach::Unknown, |(_, reach)| *reach);
            self.targets.insert(id, (target, reach));
        }
        self.update(now)
    }

    /// Records that the probe sent at `sent` was answered. Returns the outage if the answer changed it.
    #[must_use]
    pub fn answered(&mut self, id: Uuid, sent: Duration) -> Option<Outage> {
        let (_, reach) = self.targets.get_mut(&id)?;
        match *reach {
            // A late answer to an earlier probe.
            Reach::Failing { since, .. } | Reach::Down { since } if sent < since => return None,
            Reach::Up { answered } if sent < answered => return None,
            _ => *reach = Reach::Up { answered: sent },
        }
        self.update(sent)
    }

    /// Records that the probe sent at `sent` was lost. Returns the outage if the loss changed it.
    #[must_use]
    pub fn lost(&mut self, id: Uuid, sent: Duration) -> Option<Outage> {
        let (target, reach) = self.targets.get_mut(&id)?;
        *reach = match *reach {
            Reach::Up { answered } if sent < answered => return None,
            Reach::Unknown | Reach::Up { .. } => Reach::Failing { since: sent, lost: 1 },
            Reach::Failing { since, lost } => Reach::Failing { since: since.min(sent), lost: lost.saturating_add(1) },
            down @ Reach::Down { .. } => down,
        };
        if let Reach::Failing { since, lost } = *reach
            && lost >= LOST_IN_A_ROW
            && !target.needs_connection_check
        {
            *reach = Reach::Down { since };
        }
        self.update(sent)
    }

    /// Whether a connection to the target must be tried to find out if the target is reachable.
    pub fn wants_connection_check(&self, id: Uuid) -> bool {
        let Some((target, Reach::Failing { lost, .. })) = self.targets.get(&id) else { return false };
        target.needs_connection_check && *lost >= LOST_IN_A_ROW
    }

    /// Whether the target is not reachable.
    pub fn is_down(&self, id: Uuid) -> bool {
        matches!(self.targets.get(&id), Some((_, Reach::Down { .. })))
    }

    /// Records that a connection attempt that began at `at` failed, or that a connection was lost at `at` and could not
    /// be opened again. The target counts as unreachable since its first lost probe, or else since `at`.
    #[must_use]
    pub fn unreachable(&mut self, id: Uuid, at: Duration) -> Option<Outage> {
        let (_, reach) = self.targets.get_mut(&id)?;
        *reach = match *reach {
            Reach::Failing { since, .. } => Reach::Down { since: since.min(at) },
            Reach::Unknown | Reach::Up { .. } => Reach::Down { since: at },
            down @ Reach::Down { .. } => down,
        };
        self.update(at)
    }

    /// Records that a connection to the target was opened: the target is reachable, although its probes may be lost.
    #[must_use]
    pub fn reached(&mut self, id: Uuid, at: Duration) -> Option<Outage> {
        let (_, reach) = self.targets.get_mut(&id)?;
        *reach = Reach::Up { answered: at };
        self.update(at)
    }

    /// Records that the target is not probed any more.
    #[must_use]
    pub fn paused(&mut self, id: Uuid, at: Duration) -> Option<Outage> {
        let (_, reach) = self.targets.get_mut(&id)?;
        *reach = Reach::Unknown;
        self.update(at)
    }

    /// Records that the host slept, or that its network changed. All earlier observations become void. An open outage
    /// ends at `last`, the last time before the change.
    #[must_use]
    pub fn host_changed(&mut self, last: Duration) -> Option<Outage> {
        for (_, reach) in self.targets.values_mut() {
            *reach = Reach::Unknown;
        }
        self.update(last)
    }

    /// The outage that lasts at present.
    pub fn open(&self) -> Option<&Outage> {
        self.open.as_ref()
    }

    fn update(&mut self, now: Duration) -> Option<Outage> {
        let down = self.targets.values().filter_map(|(target, reach)| match reach {
            Reach::Down { since } => Some((target, *since)),
            _ => None,
        });
        let down = down.collect::<Vec<_>>();
        let Some(first) = down.iter().map(|(_, since)| *since).min() else {
            let mut over = self.open.take()?;
            self.last_end = now.max(over.began);
            over.ended = Some(self.last_end);
            return Some(over);
        };
        let before = self.open.clone();
        let began = before.as_ref().map_or(first, |outage| outage.began.min(first)).max(self.last_end);
        let mut failed = before.as_ref().map(|outage| outage.failed.clone()).unwrap_or_default();
        failed.extend(down.iter().map(|(target, _)| target.name.clone()));
        let is_up = |reach: &Reach| matches!(reach, Reach::Up { answered } if *answered >= began);
        let up = self.targets.values().filter(|(target, reach)| is_up(reach) && !failed.contains(&target.name));
        let up = up.map(|(target, _)| target).collect::<Vec<_>>();
        let reachable = up.iter().map(|target| target.name.clone()).collect::<BTreeSet<_>>();
        let gateway_failed =
            self.targets.values().any(|(target, _)| target.is_gateway && failed.contains(&target.name));
        let scope = scope(
            gateway_failed,
            up.iter().any(|target| target.is_gateway),
            up.iter().any(|target| !target.is_gateway),
        );
        let id = before.as_ref().map_or_else(Uuid::now_v7, |outage| outage.id);
        let outage = Outage { id, began, ended: None, failed, reachable, scope };
        if before.as_ref() == Some(&outage) {
            return None;
        }
        self.open = Some(outage.clone());
        Some(outage)
    }
}

fn scope(gateway_failed: bool, gateway_is_up: bool, other_is_up: bool) -> OutageScope {
    match (gateway_failed, gateway_is_up, other_is_up) {
        (true, _, false) => OutageScope::Everything,
        (true, _, true) => OutageScope::Gateway,
        (false, _, true) => OutageScope::Target,
        (false, true, false) => OutageScope::BeyondGateway,
        (false, false, false) => OutageScope::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: Uuid = Uuid::from_u128(1);
    const HOME: Uuid = Uuid::from_u128(2);
    const OFFICE: Uuid = Uuid::from_u128(3);
    const ALL: [Uuid; 3] = [GATEWAY, HOME, OFFICE];

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Watches a gateway and two hosts beyond the gateway. Only HOME, a reflector, needs a connection check.
    fn watch() -> OutageWatch {
        let target = |name: &str, is_gateway, needs_connection_check| WatchedTarget {
            name: name.to_owned(),
            is_gateway,
            needs_connection_check,
        };
        let mut watch = OutageWatch::default();
        let targets = [
            (GATEWAY, target("gateway", true, false)),
            (HOME, target("home", false, true)),
            (OFFICE, target("office", false, false)),
        ];
        assert_eq!(watch.set_targets(targets.into_iter().collect(), s(0)), None);
        watch
    }

    /// Sends a probe to every target in each second of `seconds`. The probes to the targets in `down` are lost. Returns
    /// the outages that changed.
    fn run(watch: &mut OutageWatch, seconds: std::ops::Range<u64>, down: &[Uuid]) -> Vec<Outage> {
        let mut changes = Vec::new();
        for second in seconds {
            for id in ALL {
                if !down.contains(&id) {
                    changes.extend(watch.answered(id, s(second)));
                    continue;
                }
                changes.extend(watch.lost(id, s(second)));
                if watch.wants_connection_check(id) {
                    changes.extend(watch.unreachable(id, s(second)));
                }
            }
        }
        changes
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_scope_says_what_was_still_reachable() {
        use OutageScope::{BeyondGateway, Everything, Gateway, Target};
        for (down, scope, reachable) in [
            (&[GATEWAY, HOME, OFFICE][..], Everything, &[][..]),
            (&[HOME, OFFICE], BeyondGateway, &["gateway"]),
            (&[HOME], Target, &["gateway", "office"]),
            (&[GATEWAY], Gateway, &["home", "office"]),
        ] {
            let mut watch = watch();
            assert_eq!(run(&mut watch, 0..10, &[]), []);
            let changes = run(&mut watch, 10..70, down);
            let last = changes.last().unwrap();
            assert_eq!((last.began, last.ended, last.scope), (s(10), None, scope), "{down:?}");
            assert_eq!(last.reachable, names(reachable), "{down:?}");
            assert!(changes.len() <= 4, "written at its changes only: {changes:#?}");
            let ends = run(&mut watch, 70..80, &[]);
            assert_eq!((ends.len(), ends[0].ended, ends[0].id), (1, Some(s(70)), last.id), "{ends:#?}");
            assert_eq!(watch.open(), None);
        }
    }

    #[test]
    fn a_few_lost_probes_are_no_outage() {
        let mut watch = watch();
        assert_eq!(run(&mut watch, 0..5, &[]), []);
        assert_eq!(run(&mut watch, 5..7, &ALL), []);
        assert_eq!(run(&mut watch, 7..20, &[]), []);
    }

    #[test]
    fn lost_datagrams_without_a_failed_connection_are_no_outage() {
        let mut watch = watch();
        assert_eq!(run(&mut watch, 0..5, &[]), []);
        for second in 5..60 {
            assert_eq!(watch.lost(HOME, s(second)), None);
            if watch.wants_connection_check(HOME) {
                assert_eq!(watch.reached(HOME, s(second)), None);
            }
        }
    }

    #[test]
    fn a_lost_link_that_cannot_be_made_again_is_an_outage_from_its_loss_on() {
        let mut watch = watch();
        run(&mut watch, 0..10, &[]);
        let began = watch.unreachable(HOME, s(10)).unwrap();
        assert_eq!((began.began, &began.failed), (s(10), &names(&["home"])));
        // The reachable targets of the outage are known once they have answered.
        let changes = run(&mut watch, 11..12, &[HOME]);
        assert_eq!(changes.last().map(|outage| outage.scope), Some(OutageScope::Target));
        let ended = watch.reached(HOME, s(25)).unwrap();
        assert_eq!(ended.ended, Some(s(25)));
    }

    #[test]
    fn a_pause_ends_an_outage_and_begins_none() {
        let mut watch = watch();
        run(&mut watch, 0..10, &[]);
        assert_eq!(watch.paused(HOME, s(10)), None);
        for second in 10..20 {
            let _ = (watch.answered(GATEWAY, s(second)), watch.lost(OFFICE, s(second)));
        }
        assert_eq!(watch.open().map(|outage| outage.failed.clone()), Some(names(&["office"])));
        let ended = watch.paused(OFFICE, s(22)).unwrap();
        assert_eq!((ended.ended, ended.scope), (Some(s(22)), OutageScope::BeyondGateway), "the gateway alone answered");
    }

    #[test]
    fn sleep_and_network_changes_are_no_outages() {
        let mut watch = watch();
        run(&mut watch, 0..10, &[]);
        // The host sleeps between two lost probes and two more.
        assert_eq!(run(&mut watch, 10..12, &ALL), []);
        assert_eq!(watch.host_changed(s(12)), None);
        assert_eq!(run(&mut watch, 600..602, &ALL), []);
        assert_eq!(run(&mut watch, 602..610, &[]), []);
        // An outage that was open ends where the host fell asleep.
        run(&mut watch, 610..620, &ALL);
        let ended = watch.host_changed(s(620)).unwrap();
        assert_eq!((ended.began, ended.ended), (s(610), Some(s(620))));
    }

    #[test]
    fn late_answers_and_late_losses_change_nothing() {
        let mut watch = watch();
        run(&mut watch, 0..10, &[]);
        for second in 10..13 {
            let _ = watch.lost(OFFICE, s(second));
        }
        assert!(watch.open().is_some());
        assert_eq!(watch.answered(OFFICE, s(9)), None, "to a probe from before");
        assert_eq!(watch.answered(OFFICE, s(20)).unwrap().ended, Some(s(20)));
        for second in 17..20 {
            assert_eq!(watch.lost(OFFICE, s(second)), None, "a probe that was sent before the answered one");
        }
    }

    proptest! {
        #[test]
        fn outages_never_overlap_and_each_ends_after_it_began(
            steps in prop::collection::vec((0usize..3, 0u8..6), 1..300),
        ) {
            let mut watch = watch();
            let mut open = None::<Outage>;
            let mut last_end = Duration::ZERO;
            for (at, (target, what)) in (1..).zip(steps) {
                let (id, now) = (ALL[target], s(at));
                let changed = match what {
                    0 | 1 => watch.lost(id, now),
                    2 => watch.answered(id, now),
                    3 => watch.unreachable(id, now),
                    4 => watch.paused(id, now),
                    _ => watch.reached(id, now),
                };
                if let Some(changed) = changed {
                    prop_assert!(!changed.failed.is_empty());
                    prop_assert!(changed.failed.is_disjoint(&changed.reachable));
                    if let Some(before) = &open {
                        prop_assert_eq!(before.id, changed.id);
                    }
                    if let Some(ended) = changed.ended {
                        prop_assert!(ended >= changed.began);
                        last_end = ended;
                        open = None;
                    } else {
                        prop_assert!(changed.began >= last_end);
                        open = Some(changed);
                    }
                }
                prop_assert_eq!(watch.open(), open.as_ref());
            }
        }
    }
}
