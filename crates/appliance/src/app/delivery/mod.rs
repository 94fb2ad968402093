//! Delivers due messages to their channels, with at most one attempt at a time for each channel. A message may arrive
//! more than once. Reads the clock.

#![expect(clippy::disallowed_methods, reason = "the shell that dates attempts")]

mod command;
mod fault;
mod mail;
mod web;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

pub(super) use command::checked_program;
pub(super) use fault::DeliveryFault;

use super::Appliance;
use super::clocks::random;
use super::command_seal::CommandSealer;
use crate::alerts::backoff::{LONGEST_WAIT, NextAttempt, next_attempt};
use crate::alerts::channel::{ChannelSecrets, Destination};
use crate::alerts::message::AlertMessage;
use crate::error::ApplianceError;
use crate::store::{AttemptRecord, DeliveryOutcome, DueDelivery, StoredChannel};

/// How often to look for due messages even if none is known, because another program may have added one.
const IDLE_WAIT: Duration = Duration::from_secs(60);
/// How long to wait after the store could not be read or written.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long running attempts may continue when the service stops. An attempt that is cut off is repeated at the next
/// start.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an attempt to deliver a message may take, for each kind of channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptLimits {
    pub(super) web: Duration,
    /// The limit for mail is longer, because a mail server may delay each of its answers to deter spam.
    pub(super) mail: Duration,
    pub(super) command: Duration,
}

impl Default for AttemptLimits {
    fn default() -> Self {
        Self { web: Duration::from_secs(30), mail: Duration::from_secs(60), command: Duration::from_secs(30) }
    }
}

/// Makes one attempt to deliver a message to a channel.
pub(super) async fn deliver(
    (stored, secrets): (&StoredChannel, &ChannelSecrets),
    sealer: &CommandSealer,
    message: &AlertMessage,
    limits: AttemptLimits,
) -> Result<(), DeliveryFault> {
    let destination = &stored.channel.destination;
    match destination {
        Destination::Webhook { .. } => web::post_webhook(secrets, message, limits.web).await,
        Destination::Ntfy { server, topic } => web::publish_ntfy((server, topic), secrets, message, limits.web).await,
        Destination::Smtp(mail) => Box::pin(mail::send(mail, secrets, message, limits.mail)).await,
        Destination::Command { .. } if !sealer.permits(stored) => Err(DeliveryFault::Unconfirmed),
        Destination::Command { program, args } => command::run(program, args, message, limits.command).await,
    }
}

/// Delivers the messages of the service to its channels.
pub(super) struct DeliveryDesk {
    appliance: Appliance,
    limits: AttemptLimits,
    /// Notified when a message was added or a channel was changed.
    wake: Notify,
    /// For each channel, a lock that is held during an attempt to deliver to it.
    turns: Mutex<BTreeMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
}

impl DeliveryDesk {
    pub(super) fn new(appliance: Appliance) -> Self {
        Self { appliance, limits: AttemptLimits::default(), wake: Notify::new(), turns: Mutex::default() }
    }

    /// Makes [`DeliveryDesk::run`] look for due messages, because a message was added or a channel was changed.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until no other attempt to deliver to this channel is running. Further attempts wait while the returned
    /// guard exists.
    pub(super) async fn turn(&self, channel: Uuid) -> OwnedMutexGuard<()> {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(channel).or_default().clone();
        turn.lock_owned().await
    }

    /// Delivers messages until `stopping` becomes true.
    pub(super) async fn run(self: &Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let mut attempts = JoinSet::new();
        // The channel of each running attempt, by the id of the attempt's task.
        let mut busy = HashMap::new();
        let mut is_failing = false;
        while !*stopping.borrow_and_update() {
            let wait = match self.start_due(&mut attempts, &mut busy).await {
                Ok(wait) => {
                    is_failing = false;
                    wait
                }
                Err(error) => {
                    if !is_failing {
                        tracing::error!(%error, "the messages that are due cannot be read");
                    }
                    is_failing = true;
                    RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
                Some(ended) = attempts.join_next_with_id() => {
                    let id = ended.map_or_else(|error| {
                        tracing::error!(%error, "the task of a delivery broke off");
                        error.id()
                    }, |(id, ())| id);
                    busy.remove(&id);
                }
                // This does not fail, because the sender is dropped only when the process ends.
                _ = stopping.wait_for(|wanted| *wanted) => {}
            }
        }
        let ended = async { while attempts.join_next().await.is_some() {} };
        // Returning drops the remaining attempts, which ends them.
        tokio::time::timeout(STOP_TIMEOUT, ended).await.ok();
    }

    /// Starts an attempt for each channel that has a due message. Returns how long to wait until the next call.
    async fn start_due(
        self: &Arc<Self>,
        attempts: &mut JoinSet<()>,
        busy: &mut HashMap<tokio::task::Id, Uuid>,
    ) -> Result<Duration, ApplianceError> {
        let store = self.appliance.store().await?;
        let mut wait = IDLE_WAIT;
        for (channel, next_at) in store.due_channels().await? {
            if busy.values().any(|own| *own == channel) {
                continue;
            }
            let now = Timestamp::now();
            let until = Duration::try_from(next_at.duration_since(now)).unwrap_or_default();
            // A due time further away than the longest wait was computed while the clock was wrong, so the message is
            // due now.
            if !until.is_zero() && until <= LONGEST_WAIT {
                wait = wait.min(until);
                continue;
            }
            match store.enabled_channel(channel).await? {
                Some(_) => {
                    let desk = Arc::clone(self);
                    let task = attempts.spawn(async move { desk.attempt(channel).await });
                    busy.insert(task.id(), channel);
                }
                None => {
                    let given_up = store.give_up_without_channel(now).await?;
                    tracing::warn!(
                        messages = given_up,
                        "messages are given up: their channel was removed or is disabled"
                    );
                }
            }
        }
        Ok(wait)
    }

    /// Makes one attempt to deliver the oldest due message of a channel, and records how the attempt ended.
    async fn attempt(&self, channel: Uuid) {
        let _turn = self.turn(channel).await;
        let recorded = match self.delivered(channel).await {
            Ok(recorded) => recorded,
            Err(error) => {
                tracing::debug!(%error, "a message that is due cannot be read");
                // Waits, so that the attempt is not repeated at once.
                return tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        let Some((message, attempt)) = recorded else { return };
        let mut is_failing = false;
        // Tries again until the attempt is recorded. Otherwise the message would be delivered again, for example while
        // the disk is full.
        while let Err(error) = self.record(message, channel, &attempt).await {
            if !is_failing {
                tracing::error!(%error, %message, "the outcome of a delivery attempt cannot be stored");
            }
            is_failing = true;
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn record(&self, message: Uuid, channel: Uuid, attempt: &AttemptRecord) -> Result<(), ApplianceError> {
        Ok(self.appliance.store().await?.record_attempt(message, channel, attempt).await?)
    }

    /// Attempts to deliver the oldest due message of a channel. Returns what to record; `None` if no message is due.
    async fn delivered(&self, channel: Uuid) -> Result<Option<(Uuid, AttemptRecord)>, ApplianceError> {
        let store = self.appliance.store().await?;
        let Some((stored, secrets)) = store.enabled_channel(channel).await? else { return Ok(None) };
        let Some(due) = store.first_due(channel, Timestamp::now()).await? else { return Ok(None) };
        let delivered = match &due.message {
            Ok(message) => deliver((&stored, &secrets), &self.appliance.command_sealer()?, message, self.limits).await,
            Err(error) => Err(DeliveryFault::Unreadable(error.clone())),
        };
        let attempt = recorded(&due, delivered.as_ref().err(), Timestamp::now(), random());
        report(&stored.channel.name, &due, &attempt);
        Ok(Some((due.message_id, attempt)))
    }
}

/// Makes the record of a delivery attempt that ended at `now`.
fn recorded(due: &DueDelivery, fault: Option<&DeliveryFault>, now: Timestamp, random: f64) -> AttemptRecord {
    let Some(fault) = fault else { return AttemptRecord { at: now, next_at: None, reason: None } };
    let attempts = due.attempts.saturating_add(1);
    let next_at = match next_attempt(attempts, due.created_at, now, fault.advice(), random) {
        NextAttempt::At(next_at) => Some(next_at),
        NextAttempt::Never => None,
    };
    AttemptRecord { at: now, next_at, reason: Some(fault.to_string()) }
}

/// Logs the first failed attempt to deliver a message, and the final outcome.
fn report(channel: &str, due: &DueDelivery, attempt: &AttemptRecord) {
    let (message, attempts) = (due.message_id, due.attempts.saturating_add(1));
    let reason = attempt.reason.as_deref();
    match attempt.outcome() {
        DeliveryOutcome::Delivered => tracing::info!(channel, %message, attempts, "a message is delivered"),
        DeliveryOutcome::GivenUp => tracing::error!(channel, %message, attempts, reason, "a message is given up"),
        DeliveryOutcome::Due if attempts == 1 => {
            tracing::warn!(channel, %message, reason, "a message is not delivered yet; another attempt follows");
        }
        DeliveryOutcome::Due => tracing::debug!(channel, %message, attempts, reason, "a message is not delivered yet"),
    }
}
