//! The box: what came, once for each Message-ID. In memory, so it is empty after a restart.
//!
//! Invariant: one mail for each Message-ID, however often it comes, and the newest ones if there are too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mail_parser::{Address, Message, MessageParser};
use serde::Serialize;

/// The most mails that are kept.
const MAILS_MAX: usize = 100_000;

/// Where mails are kept. Clones are the same box.
#[derive(Clone, Default)]
pub(crate) struct Mailbox(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// By the order in which they came.
    mails: BTreeMap<u64, Mail>,
    /// Where the mail of a Message-ID is.
    places: BTreeMap<String, u64>,
    came: u64,
    repeats: u64,
}

/// A mail that came.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub(crate) struct Mail {
    message_id: String,
    to: String,
    subject: String,
    text: String,
    /// How often it came.
    times: u64,
}

/// What is in the box.
#[derive(Debug, Serialize)]
pub(crate) struct Mails {
    /// How many mails came that were there already.
    repeats: u64,
    /// The mails, in the order in which they came first.
    mails: Vec<Mail>,
}

impl Mailbox {
    /// Keeps a mail, or counts that it came again.
    ///
    /// # Errors
    /// Why it is not a mail that can be known again.
    pub(crate) fn keep(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let message = MessageParser::new().parse(bytes).ok_or("this is not a mail")?;
        let mail = Mail::of(&message).ok_or("the mail has no Message-ID")?;
        self.kept().add(mail);
        Ok(())
    }

    pub(crate) fn mails(&self) -> Mails {
        let kept = self.kept();
        Mails { repeats: kept.repeats, mails: kept.mails.values().cloned().collect() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, mail: Mail) {
        if let Some(found) = self.places.get(&mail.message_id).and_then(|place| self.mails.get_mut(place)) {
            found.times += 1;
            self.repeats += 1;
            return;
        }
        self.came += 1;
        self.places.insert(mail.message_id.clone(), self.came);
        self.mails.insert(self.came, mail);
        if self.mails.len() > MAILS_MAX
            && let Some((_, oldest)) = self.mails.pop_first()
        {
            self.places.remove(&oldest.message_id);
        }
    }
}

impl Mail {
    fn of(message: &Message<'_>) -> Option<Self> {
        let to = message.to().and_then(Address::first).and_then(|to| to.address()).unwrap_or_default();
        Some(Self {
            message_id: message.message_id()?.to_owned(),
            to: to.to_owned(),
            subject: message.subject().unwrap_or_default().to_owned(),
            text: message.body_text(0).unwrap_or_default().into_owned(),
            times: 1,
        })
    }
}

impl Mails {
    /// A plain page for people.
    pub(crate) fn page(&self) -> String {
        let row = |mail: &Mail| {
            let cell = |text: &str| format!("<td>{}</td>", escaped(text));
            let cells = [&mail.to, &mail.subject, &mail.text, &mail.times.to_string()].map(|text| cell(text));
            format!("<tr>{}</tr>", cells.concat())
        };
        let rows: String = self.mails.iter().rev().map(row).collect();
        format!(
            "<!doctype html><meta charset=utf-8><title>Mail</title><h1>{} mails</h1>\
             <table border=1><tr><th>to<th>subject<th>text<th>came</tr>{rows}</table>",
            self.mails.len()
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(id: &str, subject: &str) -> Vec<u8> {
        format!("Message-ID: <{id}>\r\nTo: Ada <ada@example.org>\r\nSubject: {subject}\r\n\r\nHello\r\n")
            .into()
    }

    #[test]
    fn one_mail_is_kept_of_each_message_id() {
        let mailbox = Mailbox::default();
        for (id, subject) in [("1@orders", "first"), ("2@orders", "a < b"), ("1@orders", "first")] {
            mailbox.keep(&mail(id, subject)).unwrap();
        }
        let mails = mailbox.mails();
        let found: Vec<_> = mails.mails.iter().map(|mail| (mail.message_id.as_str(), mail.times)).collect();
        assert_eq!((found, mails.repeats), (vec![("1@orders", 2), ("2@orders", 1)], 1));
        assert_eq!(mails.mails[0].to, "ada@example.org");
        assert!(mails.page().contains("a &lt; b"));
        assert!(mailbox.keep(b"Subject: unknown\r\n\r\nHello\r\n").is_err());
    }
}
