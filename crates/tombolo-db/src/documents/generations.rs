//! How the topic is divided into partitions, in the store.
//!
//! takes: what is there and one generation more · writes: the generations, the rows in which partitions are counted, the
//! outcome of the request · commits: under the leader's epoch, in one synced transaction · if we crash here: the topic is
//! divided as before, and the request waits · if it repeats: it is not the next division any more: refused.
//!
//! Invariant: a number is only ever given in the present generation. Whoever numbers reads here how the topic is divided, as
//! the only writer.

use redb::{ReadableTable, WriteTransaction};
use tombolo_event::Generations;

use super::rows::{self, ONE, PARTITION, PartitionRow, SERVICE, ServiceRow};
use crate::{Result, fencing, owner};

/// The present ones.
pub(super) fn read(transaction: &WriteTransaction) -> Result<Generations> {
    Ok(service(&transaction.open_table(ONE)?)?.generations)
}

/// Whose database it is.
pub(super) fn service(one: &impl ReadableTable<&'static str, rows::Json>) -> Result<ServiceRow> {
    rows::get(one, SERVICE)?.ok_or_else(fencing::nobodys)
}

/// Makes these the present ones, and the rows in which their partitions are counted.
pub(super) fn store(transaction: &WriteTransaction, generations: &Generations) -> Result<()> {
    let mut one = transaction.open_table(ONE)?;
    let row = ServiceRow { generations: generations.clone(), ..service(&one)? };
    rows::put(&mut one, SERVICE, &row)?;
    let mut partitions = transaction.open_table(PARTITION)?;
    for partition in 0..generations.partitions() {
        if partitions.get(partition)?.is_none() {
            rows::put(&mut partitions, partition, &PartitionRow::default())?;
        }
    }
    partitions.retain_in(generations.partitions().., |_, _| false)?;
    Ok(())
}

/// Seals the partitions of earlier generations at their last numbers.
pub(super) fn seal(transaction: &WriteTransaction, generations: &Generations) -> Result<()> {
    let mut partitions = transaction.open_table(PARTITION)?;
    for partition in 0..generations.partitions() - generations.present() {
        let row: PartitionRow = rows::get(&partitions, partition)?.unwrap_or_default();
        rows::put(&mut partitions, partition, &PartitionRow { sealed: Some(row.numbered), ..row })?;
    }
    Ok(())
}

/// Begins the next generation.
pub(super) fn divide(transaction: &WriteTransaction, next: &Generations) -> Result<()> {
    owner::check_next(&read(transaction)?, next)?;
    store(transaction, next)?;
    seal(transaction, next)
}
