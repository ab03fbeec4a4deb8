//! The reply to a goal state: one row for each of its resources, as many as fit the senders' own limit.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use ncm_model::Row;
use ncm_model::wire::ResourceType;
use ncm_model::wire::goal_state_operation_reply::GoalStateOperationStatus;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::codec::{self, PREFIX};
use crate::engine::{Applied, Times};

/// Senders take 4 MiB a message; the contract wants replies below 3.5 MiB.
const LIMIT: usize = (7 << 20) / 2;

/// Bytes of an ordinary row: a UUID, three numbers and three times.
const ROW: usize = 64;

/// Room for the fields beside the rows.
const OTHER_FIELDS: usize = 64;

/// Field numbers of `GoalStateOperationReply`.
const FORMAT_VERSION: u32 = 1;
const OPERATION_STATUSES: u32 = 2;
const TOTAL_TIME: u32 = 3;

/// A reply but for the time that all took, which is known last.
pub(super) struct Reply {
    /// Begins with room for gRPC's prefix.
    bytes: BytesMut,
    times: Arc<Times>,
}

impl Reply {
    /// Encodes the rows. They come with what is not SUCCESS first and neighbours last, so that leaving out the end leaves
    /// out the right ones. The times are the whole message's, in microseconds: its resources share batches of writes.
    pub(super) fn of(applied: &Applied<'_>) -> Self {
        let times = applied.times;
        let bytes = rows(
            applied.rows(),
            applied.model.row_count(applied.run),
            applied.run.message().format_version(),
            [times.dataplane_us(), times.network_us(), times.elapsed_us()],
        );
        Self { bytes, times: Arc::clone(times) }
    }

    /// The reply, which begins with gRPC's prefix.
    pub(super) fn finish(self) -> Bytes {
        finish(self.bytes, self.times.elapsed_us())
    }
}

fn finish(mut reply: BytesMut, total: u32) -> Bytes {
    encode_key(TOTAL_TIME, WireType::Varint, &mut reply);
    encode_varint(total.max(1).into(), &mut reply);
    codec::frame(&mut reply);
    reply.freeze()
}

fn rows<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    expected: usize,
    format_version: u32,
    [dataplane, network, elapsed]: [u32; 3],
) -> BytesMut {
    let mut reply = BytesMut::with_capacity(LIMIT.min(PREFIX + OTHER_FIELDS + expected * ROW));
    reply.put_bytes(0, PREFIX);
    if format_version != 0 {
        encode_key(FORMAT_VERSION, WireType::Varint, &mut reply);
        encode_varint(format_version.into(), &mut reply);
    }
    let mut status = GoalStateOperationStatus {
        dataplane_programming_time: dataplane,
        network_configuration_time: network,
        state_elapse_time: elapsed,
        ..Default::default()
    };
    for row in rows {
        status.resource_id.clear();
        status.resource_id.push_str(&row.id);
        status.resource_type = resource_type(row.resource_type);
        status.operation_type = row.operation;
        status.operation_status = row.status.into();
        let length = status.encoded_len();
        if reply.len() + length + OTHER_FIELDS > LIMIT + PREFIX {
            tracing::info!("the reply shows only as many rows as fit its limit of {LIMIT} bytes");
            break;
        }
        encode_key(OPERATION_STATUSES, WireType::LengthDelimited, &mut reply);
        encode_varint(length as u64, &mut reply);
        reply.reserve(length);
        status.encode_raw(&mut reply);
    }
    reply
}

fn resource_type(resource_type: ResourceType) -> i32 {
    resource_type.into()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use ncm_model::wire::{GoalStateOperationReply, OperationStatus};

    use super::*;

    fn row(id: usize, status: OperationStatus) -> Row<'static> {
        Row {
            id: Cow::Owned(format!("{id:036}")),
            resource_type: ResourceType::Neighbor,
            operation: 1,
            status,
            cause: Cow::Borrowed(""),
        }
    }

    /// The message behind a prefix that tells its length.
    fn unframed(bytes: &[u8]) -> &[u8] {
        let (prefix, message) = bytes.split_at(PREFIX);
        assert_eq!(prefix[0], 0, "it is not compressed");
        assert_eq!(prefix[1..], (message.len() as u32).to_be_bytes());
        message
    }

    #[test]
    fn a_reply_is_what_its_message_says() {
        let list = [row(1, OperationStatus::Failure), row(2, OperationStatus::Success)];
        let bytes = finish(rows(list.into_iter(), 2, 101, [7, 8, 9]), 10);
        let reply = GoalStateOperationReply::decode(unframed(&bytes)).expect("a reply");
        assert_eq!(reply.format_version, 101);
        assert_eq!(reply.message_total_operation_time, 10);
        let ids: Vec<_> = reply.operation_statuses.iter().map(|status| status.resource_id.as_str()).collect();
        assert_eq!(ids, [format!("{:036}", 1), format!("{:036}", 2)]);
        let first = &reply.operation_statuses[0];
        assert_eq!(first.operation_status(), OperationStatus::Failure);
        assert_eq!(
            (first.dataplane_programming_time, first.network_configuration_time, first.state_elapse_time),
            (7, 8, 9)
        );
    }

    #[test]
    fn a_million_rows_are_cut_at_the_limit_and_the_first_stay() {
        let failing = (0..1000).map(|id| row(id, OperationStatus::Failure));
        let list = failing.chain((1000..1_000_000).map(|id| row(id, OperationStatus::Success)));
        let bytes = finish(rows(list, 1_000_000, 1, [0, 0, u32::MAX]), u32::MAX);
        let length = unframed(&bytes).len();
        assert!(length <= LIMIT && length > LIMIT - 1024, "{length} bytes");
        let reply = GoalStateOperationReply::decode(unframed(&bytes)).expect("a reply");
        let failed =
            reply.operation_statuses.iter().filter(|row| row.operation_status() == OperationStatus::Failure);
        assert_eq!(failed.count(), 1000);
    }
}
