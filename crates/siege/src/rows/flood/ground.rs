//! The test bed of a flood: a reflector, a paired appliance whose address prefix the reflector knows, appliances that
//! never connected, and addresses for attackers; over loopback, or for IPv6 between two hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Appliance, Reflector, TwoHosts};
use paramedic_link::SecretKey;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::attack::source;
use crate::target::{HOME, Target, peer_of};

/// The number of address prefixes from which no client ever authenticated.
pub(super) const NEW_PREFIXES: usize = 60;
const APPLIANCES: usize = 3;
const WEEK_MS: i64 = 7 * 24 * 3600 * 1000;

pub(super) struct Ground {
    pub(super) reflector: Reflector,
    pub(super) target: Target,
    /// The address of the reflector as text.
    pub(super) address: String,
    /// An appliance whose address prefix the reflector knows, because a device with this prefix has authenticated.
    pub(super) known: Appliance,
    /// The key of another peer with the same prefix as `known`.
    pub(super) peer: SecretKey,
    /// The source address of `known` and `peer`.
    pub(super) home: IpAddr,
    /// Paired appliances that have never connected.
    pub(super) new: Vec<Appliance>,
    /// The network namespace of appliances and attackers; `None` over loopback.
    pub(super) far: Option<String>,
    _hosts: Option<TwoHosts>,
}

impl Ground {
    /// Prepares the test bed; `None` if it needs namespaces and this host does not allow them.
    pub(super) fn prepare(v6: bool) -> anyhow::Result<Option<Self>> {
        let settings = [("MAX_CONCURRENT_TESTS", "16"), ("MAX_TESTS_PER_HOUR", "100000")];
        let hosts = if v6 {
            let Some(hosts) = TwoHosts::new() else { return Ok(None) };
            route(&hosts)?;
            Some(hosts)
        } else {
            None
        };
        let (reflector, far, home) = match &hosts {
            Some(hosts) => {
                let reflector = Reflector::serve_on(&["[::]:4000"], Some(&hosts.near.netns), &settings);
                (reflector, Some(hosts.far.netns.clone()), hosts.far.v6.parse()?)
            }
            None => (Reflector::serve(&settings), None, HOME),
        };
        let address = match &hosts {
            Some(hosts) => format!("[{}]:4000", hosts.near.v6),
            None => reflector.address().to_owned(),
        };
        let target = Target { address: address.parse()?, ..Target::of(&reflector)? };
        let appliance = || far.as_deref().map_or_else(Appliance::new, Appliance::in_netns);
        let known = appliance().pair(&reflector, &address);
        let first = known.speed_test(&[&super::TEST[..], &["--peer", &address]].concat());
        ensure!(first.code == 0, "a test before the flood failed: {first:?}");
        let new = (0..APPLIANCES).map(|_| {
            let appliance = appliance();
            reflector.must(&["peers", "add", &appliance.id()]);
            let by_hand = ["pair-reflector", "--peer", &address, "--endpoint-id", &target.id.to_string()];
            let outcome = appliance.run(&by_hand);
            ensure!(outcome.code == 0, "cannot pair an appliance by Endpoint ID: {outcome:?}");
            Ok(appliance)
        });
        let new = new.collect::<anyhow::Result<Vec<_>>>()?;
        let peer = peer_of(&reflector)?;
        Ok(Some(Self { reflector, target, address, known, peer, home, new, far, _hosts: hosts }))
    }

    /// Restarts the reflector after making the known address prefixes in its database a week older. Returns whether the
    /// database had any.
    pub(super) fn age_a_week(&mut self) -> anyhow::Result<bool> {
        self.reflector.process().signal(rustix::process::Signal::TERM);
        self.reflector.process().wait(Duration::from_secs(30))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let aged = runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(self.reflector.state().join("reflector.db"));
            let mut database = options.connect().await?;
            let query = "UPDATE known_prefixes SET seen_unix_ms = seen_unix_ms - ?";
            let aged = sqlx::query(query).bind(WEEK_MS).execute(&mut database).await.map(|done| done.rows_affected());
            database.close().await?;
            // An old reflector whose database lacks the table has no prefixes to age.
            anyhow::Ok(aged.unwrap_or(0))
        })?;
        self.reflector.start().context("cannot start the reflector again")?;
        Ok(aged > 0)
    }

    /// The `n`th address of the attackers.
    pub(super) fn attacker(&self, n: usize) -> IpAddr {
        let n = u16::try_from(n).unwrap_or(u16::MAX);
        match self.far {
            // The addresses are in fd97::/56; the first 256 are each in a different /64.
            Some(_) => Ipv6Addr::new(0xfd97, 0, 0, n % 256, 0, 0, 0, 1 + n / 256).into(),
            None => source(n.into()),
        }
    }

    /// The `n`th prefix from which no client ever authenticated; with IPv6 each is in a different /48.
    pub(super) fn new_prefix(&self, n: usize) -> IpAddr {
        let n = u8::try_from(n % NEW_PREFIXES).unwrap_or(0);
        match self.far {
            Some(_) => Ipv6Addr::new(0xfd98, n.into(), 0, 0, 0, 0, 0, 1).into(),
            None => Ipv4Addr::new(127, 254, 254, 1 + n).into(),
        }
    }
}

/// Routes fd97::/16 and fd98::/16 to the attackers' host, and gives that host one address in each new prefix.
fn route(hosts: &TwoHosts) -> anyhow::Result<()> {
    let (near, far) = (&hosts.near, &hosts.far);
    let ip = |args: &[&str]| -> anyhow::Result<()> {
        let output = Command::new("ip").args(args).output()?;
        ensure!(output.status.success(), "`ip` failed with {args:?}: {output:?}");
        Ok(())
    };
    for net in ["fd97::/16", "fd98::/16"] {
        ip(&["-n", &near.netns, "-6", "route", "add", net, "via", &far.v6])?;
        ip(&["-n", &far.netns, "-6", "route", "add", "local", net, "dev", "lo"])?;
    }
    for n in 0..NEW_PREFIXES {
        ip(&["-n", &far.netns, "-6", "addr", "add", &format!("fd98:{n:x}::1/128"), "dev", "lo", "nodad"])?;
    }
    Ok(())
}
