//! Signals as messages to listening connections: a script finds who hears a subject, picks one connection for each group, and tells
//! those.
//!
//! Invariant: a reach counts connections that the server has subscribed, not words that somebody left behind.

use std::sync::Arc;

use super::link::Link;
use super::scripts::Script;
use super::values::{number, odd};
use crate::adapter::hearing;
use crate::signal::{check_size, check_subject};
use crate::{Reach, Result, Signal};

pub(super) async fn send(link: &Arc<Link>, subject: &str, signal: &Signal) -> Result<Reach> {
    check_subject(subject)?;
    signal.reply_to.as_deref().map_or(Ok(()), check_subject)?;
    check_size(subject, signal)?;
    let mut line = link.line().await?;
    let mut call = line.scripts.call(Script::Send, &[link.keys.heard(subject)]);
    let chance = uuid::Uuid::new_v4().as_u64_pair().0 >> 12;
    call.arg(link.keys.handle()).arg(&hearing::encode(signal)[..]).arg(chance);
    let reached = number(Some(&line.ask(&call).await?)).ok_or_else(|| odd("the reach of a signal"))?;
    Ok(if reached == 0 { Reach::Nobody } else { Reach::Somebody })
}
