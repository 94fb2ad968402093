-- Why a run failed, as its document says it (`error`, JSON); NULL if it did not, and for runs of an earlier version.
ALTER TABLE runs ADD COLUMN error TEXT;
