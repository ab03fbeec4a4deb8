//! Counters and gauges of the agent itself. Each is declared here, once, with its name and what it counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::families::{Family, Sample};

/// Something that only rises.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// What was counted since the start.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that rises and falls.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds one until the returned guard is dropped.
    pub fn hold(&'static self) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keeps a [`Gauge`] one higher.
#[derive(Debug)]
pub struct Held(&'static Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

macro_rules! own {
    ($($kind:ident $constant:ident = $name:literal, $help:literal;)+) => {
        $(#[doc = $help] pub(crate) static $constant: $kind = $kind(AtomicU64::new(0));)+

        /// All of them, with their present values.
        #[must_use]
        pub fn own() -> Vec<Family> {
            vec![$(Family {
                name: $name,
                help: $help,
                kind: kind::$kind,
                samples: vec![Sample { labels: Vec::new(), value: $constant.get() as f64 }],
            },)+]
        }
    };
}

#[allow(non_upper_case_globals, reason = "named after the types")]
mod kind {
    pub(super) const Counter: &str = "counter";
    pub(super) const Gauge: &str = "gauge";
}

own! {
    Counter MESSAGES = "ncm_messages_total", "Goal-state messages that were applied.";
    Counter MESSAGES_REFUSED = "ncm_messages_refused_total", "Goal-state messages that could not be decoded or received.";
    Counter MESSAGE_BYTES = "ncm_message_bytes_total", "Bytes of goal-state messages that were applied.";
    Counter ROWS_FAILED = "ncm_rows_failed_total", "Resources that were answered with FAILURE.";
    Counter ROWS_REFUSED = "ncm_rows_refused_total", "Resources that were answered with INVALID_ARG or OUT_OF_ORDER.";
    Counter ROWS_PENDING = "ncm_rows_pending_total", "Resources that were answered with PENDING.";
    Counter FOREIGN_MESSAGES = "ncm_foreign_messages_total", "Messages whose host_resources have no entry for this node.";
    Counter ENTRIES_WRITTEN = "ncm_entries_written_total", "Table entries that were written or deleted.";
    Counter ENTRIES_FAILED = "ncm_entries_failed_total", "Table entries that the kernel refused.";
    Counter WRITE_MICROSECONDS = "ncm_write_microseconds_total", "Time spent writing table entries.";
    Counter FLOWS_SWEPT = "ncm_flows_swept_total", "Flows that were over, or whose port was gone, and were freed.";
    Counter FLOW_WALKS = "ncm_flow_walks_total", "Walks through the table of flows.";
    Counter SWEEP_MICROSECONDS = "ncm_sweep_microseconds_total", "Time spent on walking through the table of flows and freeing.";
    Counter RETRIES = "ncm_retries_total", "Times that refused entries were written again.";
    Counter ATTACH_FAILURES = "ncm_attach_failures_total", "Times that a program could not be attached to an interface.";
    Counter GUEST_QUESTIONS = "ncm_guest_questions_total", "DHCP and DHCPv6 messages and router solicitations of guests that were handed up.";
    Counter GUEST_QUESTIONS_SHED = "ncm_guest_questions_shed_total", "Guests' questions that had no room to wait in.";
    Counter GUEST_QUESTIONS_REFUSED = "ncm_guest_questions_refused_total", "Guests' questions without an answer: malformed, another client's or for another server, or without a binding.";
    Counter GUEST_ANSWERS = "ncm_guest_answers_total", "Answers and router advertisements that were sent to guests.";
    Counter GUEST_ANSWERS_LOST = "ncm_guest_answers_lost_total", "Answers and router advertisements that could not be sent.";
    Counter GUEST_ANSWER_MICROSECONDS = "ncm_guest_answer_microseconds_total", "Time from reading guests' questions to having answered them.";
    Counter GUEST_DECLINES = "ncm_guest_declines_total", "Leases that guests declined because another has the address.";
    Counter GUEST_FAULTS = "ncm_guest_faults_total", "Faults of the agent's own while it answered guests.";
    Counter ASKS = "ncm_asked_packets_total", "Packets to destinations that are not known that were handed up.";
    Counter ASKS_SHED = "ncm_asked_packets_shed_total", "Packets to destinations that are not known that had no room to wait in before they were read.";
    Counter HELD_RELEASED = "ncm_held_released_total", "Packets that were held for an answer from upstream and went on.";
    Counter HELD_LOST = "ncm_held_lost_total", "Packets that were held and could not be sent on.";
    Counter HELD_MICROSECONDS = "ncm_held_microseconds_total", "How long the packets were held that went on, from reading to sending them.";
    Counter UPSTREAM_REQUESTS = "ncm_upstream_requests_total", "Destinations that upstream was asked for.";
    Counter UPSTREAM_CALLS = "ncm_upstream_calls_total", "Calls to upstream, each with one request or more.";
    Counter UPSTREAM_CALLS_FAILED = "ncm_upstream_calls_failed_total", "Calls to upstream that failed or took too long.";
    Counter UPSTREAM_SUCCESSES = "ncm_upstream_successes_total", "Requests that upstream answered with SUCCESS.";
    Counter UPSTREAM_FAILURES = "ncm_upstream_failures_total", "Requests that upstream answered with FAILURE.";
    Counter UPSTREAM_GARBAGE = "ncm_upstream_ignored_total", "Answers of upstream's that were ignored: for no request of that call, given twice, or of no status that answers one.";
    Counter UPSTREAM_CONNECTIONS = "ncm_upstream_connections_total", "Connections to upstream that were made.";
    Gauge UPSTREAM_CONNECTED = "ncm_upstream_connected", "1 while upstream is connected.";
    Gauge UPSTREAM_OUTSTANDING = "ncm_upstream_outstanding", "Requests to upstream that are not answered.";
    Gauge HELD_PACKETS = "ncm_held_packets", "Packets that are held for an answer from upstream.";
    Gauge HELD_BYTES = "ncm_held_bytes", "Their bytes.";
    Counter LEARNED_LEFT = "ncm_learned_left_total", "Neighbours that came on demand and left as they were not used.";
    Gauge LEARNED = "ncm_learned", "Neighbours that came on demand, when it was looked last which are used.";
    Gauge STREAMS = "ncm_streams", "Open goal-state streams.";
    Gauge CONNECTIONS = "ncm_connections", "Open connections to the listeners.";
    Gauge BUFFERED_BYTES = "ncm_buffered_bytes", "Bytes of messages that are being received or applied.";
    Gauge SUBSCRIPTIONS = "ncm_subscriptions", "Message-queue topics that the controller told this node to follow.";
    Gauge UNWRITTEN = "ncm_resources_unwritten", "Resources with entries that the kernel refused and that are retried.";
    Gauge NOT_KEPT = "ncm_journal_failing", "1 while what is accepted cannot be kept in the journal.";
    Gauge DEVIATIONS = "ncm_deviations", "Table entries and programs in the kernel that were not as they should be when it was looked last.";
    Gauge UNCLAIMED = "ncm_unclaimed_entries", "Table entries that nothing held claims, when it was looked last.";
    Gauge REMOTE_HOSTS = "ncm_remote_hosts", "Remote hosts that endpoints are on.";
    Gauge REMOTE_HOSTS_UNRESOLVED = "ncm_remote_hosts_unresolved", "Remote hosts to which no next hop is resolved.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_convention() {
        let families = own();
        for (position, family) in families.iter().enumerate() {
            assert!(family.name.starts_with("ncm_"), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == kind::Counter, "{}", family.name);
            assert!(
                families[position + 1..].iter().all(|other| other.name != family.name),
                "{}",
                family.name
            );
        }
    }
}
