//! The byte budget of a session: how many bytes the session may still move before its owner must lease more from the
//! quotas. No call here waits.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// The bytes that one session may still move: the leased bytes minus the charged bytes. The difference is negative if
/// the session has moved more bytes than it leased.
pub(crate) struct ByteBudget {
    left: AtomicI64,
    spent: AtomicU64,
    /// The low-water mark: if fewer bytes than this are left, the budget requests more.
    low_water: AtomicI64,
    is_requested: AtomicBool,
    request: Box<dyn Fn() + Send + Sync>,
}

impl ByteBudget {
    /// An empty budget. It calls `request` when fewer bytes than the low-water mark are left, but only once until the
    /// next [`ByteBudget::extend`].
    pub(crate) fn new(request: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            left: AtomicI64::new(0),
            spent: AtomicU64::new(0),
            low_water: AtomicI64::new(0),
            is_requested: AtomicBool::new(false),
            request: Box::new(request),
        }
    }

    /// Deducts `bytes` from the budget, requests more if fewer than the low-water mark are left, and returns the bytes
    /// left (negative if the budget is overdrawn).
    pub(crate) fn charge(&self, bytes: u64) -> i64 {
        let charged = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.spent.fetch_add(bytes, Ordering::Relaxed);
        let left = self.left.fetch_sub(charged, Ordering::AcqRel).saturating_sub(charged);
        self.request_below_low_water(left);
        left
    }

    /// Adds a lease of `bytes` to the budget, and sets the low-water mark to half of `bytes`.
    pub(crate) fn extend(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.low_water.store(bytes / 2, Ordering::Relaxed);
        self.is_requested.store(false, Ordering::Release);
        let left = self.left.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        // If the debt of many threads exceeds this lease, all of them continue to wait, and no later charge would
        // request more.
        self.request_below_low_water(left);
    }

    fn request_below_low_water(&self, left: i64) {
        if left < self.low_water.load(Ordering::Relaxed) && !self.is_requested.swap(true, Ordering::AcqRel) {
            (self.request)();
        }
    }

    /// Whether the charges exceed the leases.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.left.load(Ordering::Acquire) < 0
    }

    /// The bytes that are left of the budget; 0 if the charges exceed the leases.
    pub(crate) fn left(&self) -> u64 {
        u64::try_from(self.left.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// The number of bytes charged so far.
    pub(crate) fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }
}
