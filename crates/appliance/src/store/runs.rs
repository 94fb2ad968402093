//! The saved runs: each result document as printed, with a summary row for lists. A saved run never changes.

use jiff::Timestamp;
use paramedic_report::document::ResultDocument;
use paramedic_report::stats::Grade;
use paramedic_report::summary::RunSummary;
use uuid::Uuid;

use super::{ApplianceStore, PageCursor, StorageError, natural, strange, unsigned};

/// A saved run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRun {
    /// The run's id.
    pub id: Uuid,
    /// The document exactly as printed, without the newline after it.
    pub text: String,
}

impl SavedRun {
    /// The parsed document.
    pub fn document(&self) -> Result<ResultDocument, StorageError> {
        serde_json::from_str(&self.text).map_err(|source| StorageError::Document { source })
    }
}

/// The stored summary columns of a row.
#[derive(sqlx::FromRow)]
struct RunRow {
    id: String,
    started_at_us: i64,
    provider: String,
    engine: String,
    peer: Option<String>,
    address: Option<String>,
    endpoint_id: Option<String>,
    download_bps: Option<i64>,
    upload_bps: Option<i64>,
    rtt_idle_us: Option<i64>,
    rtt_download_us: Option<i64>,
    rtt_upload_us: Option<i64>,
    bufferbloat_download: Option<String>,
    bufferbloat_upload: Option<String>,
    data_used_bytes: i64,
    complete: bool,
    error: Option<String>,
}

impl RunRow {
    fn summary(self) -> Result<RunSummary, sqlx::Error> {
        Ok(RunSummary {
            id: self.id.parse().map_err(strange)?,
            started_at: Timestamp::from_microsecond(self.started_at_us).map_err(strange)?,
            provider: self.provider,
            engine: self.engine,
            peer: self.peer,
            address: self.address,
            endpoint_id: self.endpoint_id.map(|id| id.parse()).transpose().map_err(strange)?,
            download_bps: self.download_bps.map(natural),
            upload_bps: self.upload_bps.map(natural),
            rtt_idle_us: self.rtt_idle_us.map(natural),
            rtt_download_us: self.rtt_download_us.map(natural),
            rtt_upload_us: self.rtt_upload_us.map(natural),
            bufferbloat_download: self.bufferbloat_download.map(|word| grade(&word)).transpose()?,
            bufferbloat_upload: self.bufferbloat_upload.map(|word| grade(&word)).transpose()?,
            data_used_bytes: natural(self.data_used_bytes),
            complete: self.complete,
            error: self.error.map(|text| serde_json::from_str(&text)).transpose().map_err(strange)?,
        })
    }
}

impl ApplianceStore {
    /// Saves a run: exactly the text that `--json` prints.
    pub async fn save_run(&self, document: &ResultDocument) -> Result<(), StorageError> {
        let text = document.to_text().map_err(|source| StorageError::Document { source })?;
        let run = RunSummary::of(document);
        let error = run.error.as_ref().map(serde_json::to_string).transpose();
        let error = error.map_err(|source| StorageError::Document { source })?;
        sqlx::query(
            "INSERT INTO runs (id, started_at_us, provider, engine, peer, address, endpoint_id, download_bps, \
             upload_bps, rtt_idle_us, rtt_download_us, rtt_upload_us, bufferbloat_download, bufferbloat_upload, \
             data_used_bytes, complete, document, error) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
        )
        .bind(run.id.to_string())
        .bind(run.started_at.as_microsecond())
        .bind(run.provider)
        .bind(run.engine)
        .bind(run.peer)
        .bind(run.address)
        .bind(run.endpoint_id.map(|id| id.to_string()))
        .bind(run.download_bps.map(unsigned))
        .bind(run.upload_bps.map(unsigned))
        .bind(run.rtt_idle_us.map(unsigned))
        .bind(run.rtt_download_us.map(unsigned))
        .bind(run.rtt_upload_us.map(unsigned))
        .bind(run.bufferbloat_download.map(|grade| grade.to_string()))
        .bind(run.bufferbloat_upload.map(|grade| grade.to_string()))
        .bind(unsigned(run.data_used_bytes))
        .bind(run.complete)
        .bind(text)
        .bind(error)
        .execute(&self.pool)
        .await
        .map_err(self.fault("saving the run"))?;
        Ok(())
    }

    /// The latest runs, newest first, at most `limit`.
    pub async fn runs(&self, limit: u32) -> Result<Vec<RunSummary>, StorageError> {
        self.runs_page(None, limit).await
    }

    /// The runs after this place in the list, newest first, at most `limit`.
    pub async fn runs_page(&self, after: Option<PageCursor>, limit: u32) -> Result<Vec<RunSummary>, StorageError> {
        let (at_us, id) = PageCursor::bounds(after);
        let fault = || self.fault("reading the runs");
        sqlx::query_as::<_, RunRow>(
            "SELECT id, started_at_us, provider, engine, peer, address, endpoint_id, download_bps, upload_bps, \
             rtt_idle_us, rtt_download_us, rtt_upload_us, bufferbloat_download, bufferbloat_upload, data_used_bytes, \
             complete, error FROM runs WHERE (started_at_us, id) < ($2, $3) \
             ORDER BY started_at_us DESC, id DESC LIMIT $1",
        )
        .bind(i64::from(limit))
        .bind(at_us)
        .bind(id)
        .fetch_all(&self.pool)
        .await
        .map_err(fault())?
        .into_iter()
        .map(|row| row.summary().map_err(fault()))
        .collect()
    }

    /// The only run whose id is, begins or ends with `wanted`. Ids begin with the time, so runs of the same minute
    /// differ only near the end.
    pub async fn run(&self, wanted: &str) -> Result<SavedRun, StorageError> {
        let fault = || self.fault("reading the run");
        let part = wanted.trim().to_ascii_lowercase();
        // Only hexadecimal digits and dashes: they have no special meaning in LIKE.
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Err(StorageError::NoSuchRun { wanted: wanted.to_owned() });
        }
        let mut found = sqlx::query_as::<_, (String, String)>(
            "SELECT id, document FROM runs WHERE id LIKE $1 || '%' OR id LIKE '%' || $1 LIMIT 2",
        )
        .bind(part)
        .fetch_all(&self.pool)
        .await
        .map_err(fault())?;
        match (found.pop(), found.pop()) {
            (Some(row), None) => saved(row).map_err(fault()),
            (None, _) => Err(StorageError::NoSuchRun { wanted: wanted.to_owned() }),
            (Some(_), Some(_)) => Err(StorageError::AmbiguousRun { wanted: wanted.to_owned() }),
        }
    }

    /// A page of at most `limit` runs with ids after `after`, in the order of their ids, oldest first.
    pub(super) async fn runs_after(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<SavedRun>, StorageError> {
        let fault = || self.fault("reading the runs");
        // Every id is greater than the empty string.
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        sqlx::query_as::<_, (String, String)>("SELECT id, document FROM runs WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(fault())?
            .into_iter()
            .map(|row| saved(row).map_err(fault()))
            .collect()
    }
}

fn saved((id, text): (String, String)) -> Result<SavedRun, sqlx::Error> {
    Ok(SavedRun { id: id.parse().map_err(strange)?, text })
}

fn grade(word: &str) -> Result<Grade, sqlx::Error> {
    serde_json::from_value(word.into()).map_err(strange)
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;

    use super::*;

    #[tokio::test]
    async fn a_failed_run_is_listed_with_its_error() {
        let (_folder, history) = history().await;
        let error = paramedic_report::document::ErrorBody {
            code: "unreachable".to_owned(),
            what: "cannot reach it".to_owned(),
            because: "connection refused".to_owned(),
            try_: "start it".to_owned(),
            retry_after_ms: None,
        };
        let failed = ResultDocument { complete: false, error: Some(error.clone()), ..example::bare() };
        history.save_run(&failed).await.unwrap();
        assert_eq!(history.runs(10).await.unwrap()[0].error, Some(error));
    }

    async fn history() -> (tempfile::TempDir, ApplianceStore) {
        let folder = tempfile::tempdir().unwrap();
        let history = ApplianceStore::open(folder.path()).await.unwrap();
        (folder, history)
    }

    #[tokio::test]
    async fn a_saved_run_is_read_back_byte_for_byte() {
        let (_folder, history) = history().await;
        for document in [example::full(), example::bare()] {
            history.save_run(&document).await.unwrap();
            let saved = history.run(&document.id.to_string()).await.unwrap();
            assert_eq!(saved.text, document.to_text().unwrap());
            assert_eq!(saved.document().unwrap(), document);
        }
    }

    #[tokio::test]
    async fn runs_are_listed_newest_first_up_to_the_limit() {
        let (_folder, history) = history().await;
        for document in [example::bare(), example::full()] {
            history.save_run(&document).await.unwrap();
        }
        let runs = history.runs(10).await.unwrap();
        assert_eq!(runs, [RunSummary::of(&example::bare()), RunSummary::of(&example::full())]);
        assert_eq!(runs[1].bufferbloat_download, Some(Grade::A));
        assert_eq!((runs[0].upload_bps, runs[0].rtt_idle_us), (None, None));
        assert_eq!(history.runs(1).await.unwrap().len(), 1);
        assert_eq!(serde_json::to_value(&runs[0]).unwrap().get("upload_bps"), None);
    }

    #[tokio::test]
    async fn the_pages_of_a_list_have_every_run_once_also_if_runs_come_and_go() {
        let (_folder, history) = history().await;
        let mut ids = Vec::new();
        for number in 0..7_u32 {
            // Several runs began in one microsecond.
            let started_at = Timestamp::from_microsecond(i64::from(number / 3)).unwrap();
            let run = ResultDocument { id: Uuid::now_v7(), started_at, ..example::bare() };
            history.save_run(&run).await.unwrap();
            ids.push(run.id);
        }
        ids.reverse();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = history.runs_page(after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(PageCursor { at: last.started_at, id: last.id });
            seen.extend(page.iter().map(|run| run.id));
            // The row of the cursor is deleted, and a newer one is added.
            let gone = last.id.to_string();
            sqlx::query("DELETE FROM runs WHERE id = $1").bind(gone).execute(&history.pool).await.unwrap();
            let newer = ResultDocument { id: Uuid::now_v7(), ..example::bare() };
            history.save_run(&newer).await.unwrap();
        }
        assert_eq!(seen, ids);
    }

    #[tokio::test]
    async fn a_run_is_found_by_a_part_of_its_id_that_is_unique() {
        let (_folder, history) = history().await;
        history.save_run(&example::full()).await.unwrap();
        history.save_run(&example::bare()).await.unwrap();
        let id = example::full().id;
        let text = id.to_string();
        for part in [text.as_str(), &text[..13], &text[28..], &text.to_uppercase()] {
            assert_eq!(history.run(part).await.unwrap().id, id, "{part}");
        }
        assert!(matches!(history.run(&text[..8]).await, Err(StorageError::AmbiguousRun { .. })));
        for unknown in ["", "%", "_", "ffffffff", "attic"] {
            assert!(matches!(history.run(unknown).await, Err(StorageError::NoSuchRun { .. })), "{unknown}");
        }
    }
}
