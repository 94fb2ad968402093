//! Reads limits that control groups set (cgroups(7)): how much processor time the program may use, for how long it was
//! throttled, and how many threads it may have. A value that cannot be read is absent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the CPU quota of a control group has throttled this program since the group was created: the highest value
/// of all groups of the program. The kernel adds up the time of all processors, so the value may exceed the elapsed
/// time.
pub fn held_back() -> Option<Duration> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().flat_map(|line| groups(line, "cpu")).filter_map(|group| held_back_by(&group)).max()
}

/// The number of cores that this program may use: the lowest CPU quota of all its control groups. `None` if no group
/// has a quota.
pub fn cores() -> Option<f64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().flat_map(|line| groups(line, "cpu")).filter_map(|group| cores_of(&group)).min_by(f64::total_cmp)
}

/// The first control group of this program that has reached its thread limit: the file with the limit, and the limit.
pub fn full_pids_group() -> Option<(PathBuf, u64)> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().flat_map(|line| groups(line, "pids")).find_map(|group| pids_limit_if_full(&group))
}

/// The folders of the group that a line of /proc/self/cgroup names, and of all groups above it, at the usual mount
/// points. Empty if the line does not concern `controller`.
fn groups(line: &str, controller: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return vec![] };
    let mounted = if controllers.is_empty() {
        vec!["/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup/unified".to_owned()]
    } else if controllers.split(',').any(|one| one == controller) {
        vec![format!("/sys/fs/cgroup/{controller}"), format!("/sys/fs/cgroup/{controllers}")]
    } else {
        vec![]
    };
    let levels = Path::new(path.trim_start_matches('/')).ancestors();
    levels.flat_map(|level| mounted.iter().map(move |root| Path::new(root).join(level))).collect()
}

/// The file `pids.max` of `group` and its limit, if `pids.current` has reached it. Versions 1 and 2 of cgroups both
/// have these files.
fn pids_limit_if_full(group: &Path) -> Option<(PathBuf, u64)> {
    let file = group.join("pids.max");
    // "max" is no limit.
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let (max, current) = (number(&file)?, number(&group.join("pids.current"))?);
    (current >= max).then_some((file, max))
}

/// The CPU quota of `group` in cores, read from `cpu.max` of cgroups version 2, or from `cpu.cfs_quota_us` and
/// `cpu.cfs_period_us` of version 1.
fn cores_of(group: &Path) -> Option<f64> {
    let file = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let (quota, period) = match file("cpu.max") {
        Some(max) => {
            let (quota, period) = max.split_once(char::is_whitespace)?;
            // "max" is no limit.
            (number(quota)?, number(period)?)
        }
        // -1 is no limit.
        None => (number(&file("cpu.cfs_quota_us")?)?, number(&file("cpu.cfs_period_us")?)?),
    };
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

fn held_back_by(group: &Path) -> Option<Duration> {
    parse(&fs::read_to_string(group.join("cpu.stat")).ok()?)
}

/// Reads the throttled time from the text of a `cpu.stat` file: `throttled_usec` of cgroups version 2, `throttled_time`
/// in nanoseconds of version 1.
fn parse(stat: &str) -> Option<Duration> {
    let value = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        line.trim().parse::<u64>().ok()
    };
    let now = || value("throttled_usec").map(Duration::from_micros);
    now().or_else(|| value("throttled_time").map(Duration::from_nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_report_how_long_a_group_was_throttled() {
        assert_eq!(parse("usage_usec 9\nnr_throttled 3\nthrottled_usec 1500\n"), Some(Duration::from_micros(1500)));
        assert_eq!(parse("nr_periods 688\nthrottled_time 84148\n"), Some(Duration::from_nanos(84148)));
        assert_eq!(parse("usage_usec 9\n"), None, "no share is set");
        assert_eq!(parse("throttled_time -1"), None);
    }

    #[test]
    fn both_versions_report_the_limit_of_a_group() {
        let group = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            files.iter().for_each(|(name, content)| fs::write(folder.path().join(name), content).unwrap());
            cores_of(folder.path())
        };
        assert_eq!(group(&[("cpu.max", "150000 100000\n")]), Some(1.5));
        assert_eq!(group(&[("cpu.max", "max 100000\n")]), None);
        let first = |quota| group(&[("cpu.cfs_quota_us", quota), ("cpu.cfs_period_us", "100000\n")]);
        assert_eq!((first("50000\n"), first("-1\n"), first("much\n")), (Some(0.5), None, None));
        assert_eq!((group(&[("cpu.max", "")]), group(&[])), (None, None));
    }

    #[test]
    fn a_group_is_full_if_it_holds_as_many_threads_as_it_may() {
        let group = |max: &str, current: &str| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("pids.max"), max).unwrap();
            fs::write(folder.path().join("pids.current"), current).unwrap();
            pids_limit_if_full(folder.path()).map(|(file, max)| (file.ends_with("pids.max"), max))
        };
        assert_eq!(group("20\n", "20\n"), Some((true, 20)));
        assert_eq!((group("20\n", "19\n"), group("max\n", "19\n"), group("much", "1")), (None, None, None));
        assert!(groups("8:pids:/a", "pids").contains(&PathBuf::from("/sys/fs/cgroup/pids/a")));
    }

    #[test]
    fn all_groups_above_a_group_count() {
        let of = |line| groups(line, "cpu").iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert!(of("0::/a/b").contains(&"/sys/fs/cgroup/a/b".to_owned()));
        assert!(of("0::/a/b").contains(&"/sys/fs/cgroup/".to_owned()));
        assert!(of("3:cpu,cpuacct:/a").contains(&"/sys/fs/cgroup/cpu,cpuacct/a".to_owned()));
        assert!(of("4:memory:/a").is_empty() && of("2:cpuset:/a").is_empty() && of("").is_empty());
    }
}
