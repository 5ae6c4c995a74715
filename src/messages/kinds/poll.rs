//! Polls: the question, the answers people choose, the end
//! ([MSC3381](https://github.com/matrix-org/matrix-spec-proposals/pull/3381), stable and unstable names).

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Content, Kind, text};

/// Answers of a poll that are read at most; the MSC lets clients ignore more than 20.
const MOST_ANSWERS: usize = 100;

/// `data.content.poll` of a `poll`: what is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Poll {
    /// The question.
    pub question: String,
    /// What can be chosen.
    pub answers: Vec<Answer>,
    /// How many of them one person may choose.
    pub max_selections: u64,
    /// Whether the votes can be seen before the poll has ended.
    pub disclosed: bool,
}

/// One answer of a poll.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    /// Its id, which responses name.
    pub id: String,
    /// What it says.
    pub text: String,
}

/// The names of one generation of the proposal.
struct Names {
    poll: &'static str,
    response: &'static str,
    end: &'static str,
}

const STABLE: Names = Names { poll: "m.poll", response: "m.selections", end: "m.poll.results" };
const UNSTABLE: Names = Names {
    poll: "org.matrix.msc3381.poll.start",
    response: "org.matrix.msc3381.poll.response",
    end: "org.matrix.msc3381.poll.end",
};

/// The content of a poll's event; none when it is not one, or malformed.
pub(super) fn read(event_type: &str, content: &Map<String, Value>) -> Option<Content> {
    let (generation, part) = match event_type.strip_prefix("m.poll.") {
        Some(part) => (STABLE, part),
        None => (UNSTABLE, event_type.strip_prefix("org.matrix.msc3381.poll.")?),
    };
    match part {
        "start" => read_start(&generation, content),
        "response" => read_response(&generation, content),
        "end" => Some(read_end(&generation, content)),
        _ => None,
    }
}

fn read_start(names: &Names, content: &Map<String, Value>) -> Option<Content> {
    let raw = content.get(names.poll)?.as_object()?;
    let question = extensible(raw.get("question")?)?;
    let answers = raw.get("answers")?.as_array()?.iter().take(MOST_ANSWERS).filter_map(|answer| {
        let id = ["m.id", "id"].into_iter().find_map(|key| answer.get(key)).and_then(Value::as_str)?;
        Some(Answer { id: id.to_owned(), text: extensible(answer)? })
    });
    let kind = raw.get("kind").and_then(Value::as_str).unwrap_or_default();
    let poll = Poll {
        question: question.clone(),
        answers: answers.collect(),
        max_selections: raw
            .get("max_selections")
            .and_then(Value::as_u64)
            .filter(|most| *most > 0)
            .unwrap_or(1),
        // Undisclosed unless it says otherwise, as the proposal has it.
        disclosed: kind.ends_with(".disclosed"),
    };
    Some(Content { text: Some(question), poll: Some(poll), ..Content::of(Kind::Poll) })
}

fn read_response(names: &Names, content: &Map<String, Value>) -> Option<Content> {
    let chosen = content.get(names.response)?;
    let chosen = chosen.as_array().or_else(|| chosen.get("answers").and_then(Value::as_array))?;
    let ids = chosen.iter().take(MOST_ANSWERS).filter_map(Value::as_str).map(str::to_owned);
    Some(Content { selections: Some(ids.collect()), ..Content::of(Kind::PollResponse) })
}

fn read_end(names: &Names, content: &Map<String, Value>) -> Content {
    let words = content.get(names.end).and_then(extensible);
    let words = words.or_else(|| extensible(&Value::Object(content.clone())));
    Content { text: words, ..Content::of(Kind::PollEnd) }
}

/// The plain text of extensible content: a string, or a list of representations
/// ([MSC1767](https://github.com/matrix-org/matrix-spec-proposals/pull/1767)).
fn extensible(value: &Value) -> Option<String> {
    let content = value.as_object()?;
    let unstable = || text(content, "org.matrix.msc1767.text");
    let stable = || {
        let all = content.get("m.text")?.as_array()?;
        let plain = |one: &&Value| {
            one.get("mimetype").and_then(Value::as_str).is_none_or(|mimetype| mimetype == "text/plain")
        };
        all.iter().find(plain)?.get("body")?.as_str()
    };
    unstable().or_else(stable).or_else(|| text(content, "body")).map(str::to_owned)
}
