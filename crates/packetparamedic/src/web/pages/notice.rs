//! The notices with which a page confirms the viewer's last change. The address of the page names the notice by a word
//! of a fixed list, so that no text of the address gets into the page.

/// Defines the notices. Each has a word for the address of a page, and a text for the page itself.
macro_rules! notices {
    ($($name:ident $word:literal $text:literal,)*) => {
        /// A notice with which a page confirms a change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Notice {
            $(#[doc = $text] $name,)*
        }

        impl Notice {
            const ALL: &'static [(Self, &'static str, &'static str)] = &[$((Self::$name, $word, $text),)*];
        }
    };
}

notices! {
    LoggedIn "logged-in" "You are logged in.",
    LoggedOut "logged-out" "You are logged out.",
    PasswordSet "password-set" "The password is set, and you are logged in.",
    TestStarted "test-started" "The test has begun.",
    TestCancelled "test-cancelled" "The test is cancelled.",
    NothingToCancel "nothing-to-cancel" "That test has ended already.",
    Paired "paired" "The reflector is paired.",
    ReflectorRenamed "reflector-renamed" "The reflector has its new name.",
    ReflectorRemoved "reflector-removed" "The reflector is removed. Its results stay.",
    ScheduleAdded "schedule-added" "The schedule is added.",
    ScheduleRemoved "schedule-removed" "The schedule is removed. Its results stay.",
    ScheduleChanged "schedule-changed" "The schedule is changed.",
    ScheduleRequested "schedule-requested" "The schedule runs as soon as no other test runs.",
    MonitorAdded "monitor-added" "The monitor is added.",
    MonitorRemoved "monitor-removed" "The monitor is removed.",
    MonitorChanged "monitor-changed" "The monitor is changed.",
    RuleAdded "rule-added" "The rule is added. It judges what is measured from now on.",
    RuleRemoved "rule-removed" "The rule is removed, and its alerts are closed.",
    RuleChanged "rule-changed" "The rule is changed.",
    PlanSaved "plan-saved" "The plan is saved.",
    PlanCleared "plan-cleared" "The plan is removed.",
    ChannelAdded "channel-added" "The channel is added. Send a test message to it.",
    ChannelChanged "channel-changed" "The channel is changed.",
    ChannelRemoved "channel-removed" "The channel is removed.",
    ChannelTested "channel-tested" "The test message was delivered.",
    TokenRemoved "token-removed" "The token is removed. Requests with it are refused from now on.",
    ResultDeleted "result-deleted" "The result is deleted.",
}

impl Notice {
    /// The query parameter that names a notice in the address of a page.
    pub(super) const PARAMETER: &'static str = "done";

    /// Returns the notice whose word is `word`; `None` if no notice has this word.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own, _)| *own == word).map(|(notice, ..)| *notice)
    }

    /// The word that names this notice in the address of a page.
    pub(super) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(own, ..)| *own == self).map_or("", |(_, word, _)| word)
    }

    /// The text of this notice in a page.
    pub(super) fn text(self) -> &'static str {
        Self::ALL.iter().find(|(own, ..)| *own == self).map_or("", |(.., text)| text)
    }
}
