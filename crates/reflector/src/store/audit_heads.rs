//! Stores the start and the end of each chain of the audit log.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;

use super::change::one_connection;
use super::error::failure;
use super::{BUSY_TIMEOUT, Store, StoreError, signed, unsigned};
use crate::audit::{ChainState, Head};
use crate::event::Chain;

/// Selects each chain of the audit log as a [`ChainRow`].
const AUDIT_CHAINS: &str = "SELECT chain, seq, hash, base_seq, base_hash FROM audit_chains";
/// Selects the only chain of a database that an earlier version wrote.
const AUDIT_HEAD: &str = "SELECT 'main', seq, hash, 0, zeroblob(32) FROM audit_head";

/// A row about a chain of the audit log: its name, then number and hash of its head, then number and hash of its base.
type ChainRow = (String, i64, Vec<u8>, i64, Vec<u8>);

impl Store {
    /// Reads what the database at `path` records about the chains of the audit log. Creates, changes and locks nothing,
    /// so it works beside a running reflector.
    pub async fn read_audit_chains(path: &Path) -> Result<BTreeMap<Chain, ChainState>, StoreError> {
        let lock = File::open(path).map_err(|source| StoreError::Unusable { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let pool = one_connection().connect_with(options.clone()).await;
        let store = Self::of(path, pool.map_err(|why| failure(path, "opening it", why))?, options, lock);
        let chains = async {
            // If the program was updated but has not served yet, the database is still that of the earlier version.
            let of_before: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM sqlite_master WHERE name = 'audit_head'")
                .fetch_optional(&store.pool)
                .await
                .map_err(|why| store.failure("reading the audit log's heads", why))?;
            let sql = of_before.map_or(AUDIT_CHAINS, |_| AUDIT_HEAD);
            store.audit_chains_by(sql).await
        };
        let chains = chains.await;
        store.close().await;
        chains
    }

    /// Stores the records of all chains in one transaction. While the log has a fault, this is called again with the
    /// same records to test the disk. SQLite does not write a page for an unchanged row, so each call changes the
    /// column `writes`.
    pub async fn set_audit_chains(&self, states: &BTreeMap<Chain, ChainState>) -> Result<(), StoreError> {
        let mut change = self.begin("storing the heads of the audit log's chains").await?;
        let kept = async {
            for (chain, state) in states {
                sqlx::query(
                    "INSERT INTO audit_chains (chain, seq, hash, base_seq, base_hash) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (chain) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, \
                     base_seq = excluded.base_seq, base_hash = excluded.base_hash, writes = audit_chains.writes + 1",
                )
                .bind(chain_name(*chain))
                .bind(signed(state.head.seq))
                .bind(&state.head.hash[..])
                .bind(signed(state.base.seq))
                .bind(&state.base.hash[..])
                .execute(&mut *change.work)
                .await?;
            }
            Ok(())
        };
        let kept = kept.await;
        self.conclude(change, kept).await
    }

    /// The records of the chains of the audit log. A chain without a record never had a line on disk.
    pub async fn audit_chains(&self) -> Result<BTreeMap<Chain, ChainState>, StoreError> {
        self.audit_chains_by(AUDIT_CHAINS).await
    }

    async fn audit_chains_by(&self, sql: &'static str) -> Result<BTreeMap<Chain, ChainState>, StoreError> {
        let rows: Vec<ChainRow> = sqlx::query_as(sql)
            .fetch_all(&self.pool)
            .await
            .map_err(|why| self.failure("reading the audit log's heads", why))?;
        let line = |seq, hash: Vec<u8>| {
            let hash = hash.try_into().map_err(|_| self.damaged("the hash of a line of the audit log is not valid"))?;
            Ok(Head { seq: unsigned(seq), hash })
        };
        rows.into_iter()
            .map(|(name, seq, hash, base_seq, base_hash)| {
                let chain = [Chain::Main, Chain::Refusals].into_iter().find(|chain| chain_name(*chain) == name);
                let chain = chain.ok_or_else(|| self.damaged("it names an unknown chain of the audit log"))?;
                Ok((chain, ChainState { base: line(base_seq, base_hash)?, head: line(seq, hash)? }))
            })
            .collect()
    }
}

/// The name of a chain in the database.
fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Main => "main",
        Chain::Refusals => "refusals",
    }
}
