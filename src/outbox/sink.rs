//! What the outbox knows of a destination: it takes a message, or is to be asked again.

use std::{error::Error, time::Duration};

use async_trait::async_trait;

use crate::clock::Timestamp;

/// What one attempt hands over.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// A message, JSON.
    One(&'a [u8]),
    /// Messages that go together, in their order.
    Batch(&'a [&'a [u8]]),
}

/// One attempt to hand over one message, or several that go together.
#[derive(Clone, Copy, Debug)]
pub struct WebhookRequest<'a> {
    /// The message's or batch's id: the same at every attempt, so that the receiver can tell a repeat.
    pub id: &'a str,
    /// When this attempt is made.
    pub timestamp: Timestamp,
    /// What is told: the same at every attempt, but for the addresses of files.
    pub body: Body<'a>,
}

/// What became of an attempt.
#[derive(Debug)]
pub enum Outcome {
    /// The receiver has taken the message.
    Delivered {
        /// The status it answered, where the sink has such a thing.
        status: Option<u16>,
    },
    /// It has not, or nobody knows: try again.
    Retry {
        /// How long the receiver asked to wait.
        after: Option<Duration>,
        /// Why.
        why: SendError,
    },
}

/// Why an attempt failed. No message contains a URL or anything of a body.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// An answer that is not a success.
    #[error("the receiver answered {0}")]
    Status(u16),
    /// The receiver says it is gone for good (410).
    #[error("the receiver answered 410: it wants no more")]
    Gone,
    /// A redirect, which is not followed.
    #[error("the receiver answered {0}, a redirect, which is not followed")]
    Redirect(u16),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No connection.
    #[error("no connection")]
    Connect(#[source] Box<dyn Error + Send + Sync>),
    /// The connection broke before there was an answer.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// The request cannot be made from this message.
    #[error("the message cannot be sent as it is")]
    Unsendable,
}

impl SendError {
    /// The kind of failure, one word, as it is kept with the delivery.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Gone => "gone",
            Self::Redirect(_) => "redirect",
            Self::Timeout => "timeout",
            Self::Connect(_) => "connect",
            Self::Broken(_) => "broken",
            Self::Unsendable => "unsendable",
        }
    }

    /// Whether the receiver, or what stands before it, asks for less of everything; `asked`: it said for how long.
    #[must_use]
    pub fn slows_all(&self, asked: bool) -> bool {
        matches!(self, Self::Status(429 | 502 | 504)) || (asked && matches!(self, Self::Status(503)))
    }

    /// The status of the answer, when there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) | Self::Redirect(status) => Some(*status),
            Self::Gone => Some(410),
            _ => None,
        }
    }
}

/// Where messages go.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Makes one attempt. Must end by itself in bounded time; may be dropped at any point.
    async fn deliver(&self, request: WebhookRequest<'_>) -> Outcome;
}
