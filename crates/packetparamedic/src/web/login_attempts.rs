//! Limits how many wrong passwords an address may send. Pure: callers pass in the time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::rate_window::RateWindow;
use crate::network::user_part;

/// How many wrong passwords an address may send before it has to wait. An IPv6 /64 network counts as one address.
const MAX_WRONG: u8 = 5;
/// How long an address must wait after the last of [`MAX_WRONG`] wrong passwords. If an address sends no wrong password
/// for this long, its earlier wrong passwords no longer count.
const WAIT: Duration = Duration::from_secs(10 * 60);
/// The maximum number of addresses whose wrong passwords are counted at once.
const MAX_ADDRESSES: usize = 1024;

/// Counts the recent wrong passwords of each address. Does not store the passwords.
#[derive(Debug, Default)]
pub(super) struct LoginAttempts {
    wrong: HashMap<IpAddr, (u8, Instant)>,
    /// Limits how many failed logins are logged, because a client with many addresses must not fill the log.
    logged: RateWindow<10>,
}

impl LoginAttempts {
    /// Begins an attempt to log in from `address`. Fails with the time to wait if the address sent too many wrong
    /// passwords. The attempt counts as wrong until [`Self::succeeded`], so that simultaneous attempts count too.
    pub(super) fn begin(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = user_part(address);
        if let Some((wrong, last)) = self.wrong.get(&address) {
            let left = WAIT.saturating_sub(now.saturating_duration_since(*last));
            if left.is_zero() {
                self.wrong.remove(&address);
            } else if *wrong >= MAX_WRONG {
                return Err(left);
            }
        }
        if self.wrong.len() >= MAX_ADDRESSES && !self.wrong.contains_key(&address) {
            self.wrong.retain(|_, (_, last)| now.saturating_duration_since(*last) < WAIT);
            // The addresses that have to wait are forgotten last.
            let least = self.wrong.iter().min_by_key(|(_, (wrong, last))| (*wrong, *last)).map(|(address, _)| *address);
            if let Some(least) = least.filter(|_| self.wrong.len() >= MAX_ADDRESSES) {
                self.wrong.remove(&least);
            }
        }
        let (wrong, last) = self.wrong.entry(address).or_insert((0, now));
        *wrong += 1;
        *last = now;
        Ok(())
    }

    /// Whether the service may log a failed login at `now`. If so, counts the log line.
    pub(super) fn is_logged(&mut self, now: Instant) -> bool {
        self.logged.begin(now).is_ok()
    }

    /// Removes an attempt from the count of `address`, because its password could not be checked.
    pub(super) fn take_back(&mut self, address: IpAddr) {
        if let Some((wrong, _)) = self.wrong.get_mut(&user_part(address)) {
            *wrong = wrong.saturating_sub(1);
        }
    }

    /// Records that `address` sent the right password. Its earlier wrong passwords no longer count.
    pub(super) fn succeeded(&mut self, address: IpAddr) {
        self.wrong.remove(&user_part(address));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any time is a begin")]
    fn begin() -> Instant {
        Instant::now()
    }

    #[test]
    fn after_five_wrong_passwords_an_address_waits_and_others_do_not() {
        let (mut attempts, now) = (LoginAttempts::default(), begin());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = address("2001:db8::1");
        for _ in 0..MAX_WRONG {
            assert_eq!(attempts.begin(one, now), Ok(()));
        }
        assert_eq!(attempts.begin(address("2001:db8::2"), now), Err(WAIT));
        assert_eq!(attempts.begin(address("2001:db8:0:1::1"), now), Ok(()));
        assert_eq!(attempts.begin(one, now + WAIT / 2), Err(WAIT / 2));
        assert_eq!(attempts.begin(one, now + WAIT), Ok(()));
        attempts.succeeded(one);
        for _ in 0..MAX_WRONG {
            assert_eq!(attempts.begin(one, now + WAIT), Ok(()));
        }
        // One of the attempts was not judged.
        attempts.take_back(one);
        assert_eq!(attempts.begin(one, now + WAIT), Ok(()));
        assert_eq!(attempts.begin(one, now + WAIT), Err(WAIT));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn many_addresses_are_bounded_and_free_none_that_waits(addresses in proptest::collection::vec(any::<u32>(), 1..3000)) {
            let (mut attempts, now) = (LoginAttempts::default(), begin());
            let waits = IpAddr::from([192, 0, 2, 1]);
            while attempts.begin(waits, now).is_ok() {}
            for address in addresses {
                let _ = attempts.begin(IpAddr::V4(address.into()), now);
                prop_assert!(attempts.wrong.len() <= MAX_ADDRESSES);
            }
            prop_assert_eq!(attempts.begin(waits, now), Err(WAIT));
        }
    }
}
