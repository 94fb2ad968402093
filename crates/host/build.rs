//! Passes the commit that the program is built from to `src/version.rs`. The commit comes from the first of these
//! sources that knows it: the environment, the file of a source archive, git. If none knows the commit, the build
//! succeeds, and the version names no commit.
//!
//! git is asked only for optimised builds: in development builds, each new commit would otherwise recompile this crate
//! and all crates that depend on it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// In a source archive, this file contains the commit: `git archive` replaces the placeholders in the file
/// (export-subst in .gitattributes).
const ARCHIVED: &str = "commit.txt";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={ARCHIVED}");
    println!("cargo:rerun-if-env-changed=SOURCE_COMMIT");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR").unwrap_or_default());
    let found = named().or_else(|| archived(&folder)).or_else(|| {
        let is_optimised = variable("PROFILE").is_some_and(|profile| profile == "release");
        is_optimised.then(|| checked_out(&folder)).flatten()
    });
    let Some((commit, date)) = found else { return };
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit.get(..12).unwrap_or(&commit));
    if let Some(date) = date {
        println!("cargo:rustc-env=BUILD_COMMIT_DATE={date}");
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The commit in the variable SOURCE_COMMIT, with SOURCE_DATE_EPOCH as its date.
fn named() -> Option<(String, Option<String>)> {
    let commit = variable("SOURCE_COMMIT").filter(|commit| is_commit(commit))?;
    Some((commit, variable("SOURCE_DATE_EPOCH").and_then(|seconds| date(&seconds))))
}

/// The commit and its date from [`ARCHIVED`]. `None` outside a source archive, where that file has only placeholders.
fn archived(folder: &Path) -> Option<(String, Option<String>)> {
    commit_and_date(&std::fs::read_to_string(folder.join(ARCHIVED)).ok()?)
}

/// The commit that is checked out, and its date. `None` if this source is not the git checkout of this project, for
/// example because it was copied into another repository.
fn checked_out(folder: &Path) -> Option<(String, Option<String>)> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(args).output().ok()?;
        let text = output.status.success().then(|| String::from_utf8(output.stdout).ok()).flatten()?;
        Some(text.trim().to_owned())
    };
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    if folder.join("../..").canonicalize().ok()? != top.canonicalize().ok()? {
        return None;
    }
    // What changes with each commit and each checkout. A path that does not exist would run this script every time.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for path in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", path]).map(|path| folder.join(path));
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    commit_and_date(&git(&["log", "-1", "--format=%H %ct"])?)
}

/// Parses `HASH SECONDS`, the text that git writes for the format `%H %ct`. Returns the hash and the date.
fn commit_and_date(text: &str) -> Option<(String, Option<String>)> {
    let (commit, seconds) = text.trim().split_once(' ')?;
    is_commit(commit).then(|| (commit.to_owned(), date(seconds)))
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The UTC date of a time in seconds since 1970, as YYYY-MM-DD.
fn date(seconds: &str) -> Option<String> {
    let days = seconds.parse::<u32>().ok()? / 86_400;
    // https://howardhinnant.github.io/date_algorithms.html#civil_from_days, for days since 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u32::from(month <= 2);
    Some(format!("{year:04}-{month:02}-{day:02}"))
}
