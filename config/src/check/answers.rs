//! Stored answers: room for at least one, and something to do with them.

use super::{Checker, on, text};
use crate::read::tree::Node;
use crate::schema::{self, File, Switch};
use crate::units::format_size;
use crate::validated::{AnswerStore, AnswerWarmUp, Answers, Fallback, FallbackAnswers};

/// Headers that are never the same for two requests, or say nothing about what is asked.
const NEVER_VARY: [&str; 4] = ["content-length", "date", "traceparent", "x-request-id"];

impl Checker<'_> {
    pub(super) fn answer_store(&mut self, node: &Node, file: &File) -> AnswerStore {
        let store = &file.answers;
        let warm_up = store.warm_up.as_ref().and_then(|warm_up| {
            let Some(file) = warm_up.file.clone().filter(|file| !file.as_os_str().is_empty())
            else {
                self.missing(node.at("warm_up"), "file");
                return None;
            };
            let (rate, at_once) = (warm_up.rate.0, warm_up.at_once.0 as usize);
            Some(AnswerWarmUp { file, rate, at_once })
        });
        let refreshes = store.refreshes.0 as usize;
        let at = node.at("redis");
        let redis = store.redis.as_ref().map(|redis| self.redis(at, redis));
        AnswerStore { memory: store.memory.0, refreshes, redis, warm_up }
    }

    /// What a route does with answers: `answers`, or the defaults of it where only `fallback` asks for
    /// them.
    pub(super) fn answers(
        &mut self,
        node: &Node,
        route: &schema::Route,
        file: &File,
    ) -> (Option<Answers>, Fallback) {
        let fallback = self.fallback(node.at("fallback").at("answers"), &route.fallback.answers);
        let default = schema::Answers::default();
        let answers = match (&route.answers, &fallback) {
            (Switch::On(answers), _) => answers,
            (Switch::Off, Some(_)) => &default,
            (Switch::Off, None) => return (None, Fallback::default()),
        };
        let at = node.at("answers");
        let memory = file.answers.memory.0;
        if answers.max_answer.0 > memory {
            let room = format_size(memory);
            let message = format!("is more than all answers may have (answers.memory: {room})");
            self.wrong(at.at("max_answer"), message, None);
        }
        let grace = on(&answers.stale_while_revalidate).map(|time| time.0);
        if grace.is_some() && !answers.prefer {
            let message = "has no effect without `prefer: true`";
            self.warn(at.at("stale_while_revalidate"), message);
        }
        let answers = Answers {
            prefer: answers.prefer,
            ttl: answers.ttl.0,
            stale_while_revalidate: grace,
            fallback: fallback.clone(),
            deterministic_only: answers.deterministic_only,
            across_arms: answers.across_arms,
            vary: self.vary(at.at("vary"), &answers.vary),
            max_request: answers.max_request.0,
            max_answer: answers.max_answer.0,
            replay: answers.replay,
            coalesce: answers.coalesce,
        };
        (Some(answers), Fallback { answers: fallback })
    }

    fn fallback(
        &mut self,
        node: &Node,
        answers: &Switch<schema::FallbackAnswers>,
    ) -> Option<FallbackAnswers> {
        let Switch::On(answers) = answers else { return None };
        if answers.when.is_empty() {
            let help = "leave `answers` out of `fallback`".to_owned();
            let message = "is empty: no answer would ever be served";
            self.wrong(node.at("when"), message, Some(help));
        }
        let when = answers.when.iter().copied().collect();
        Some(FallbackAnswers { stale_for: answers.stale_for.0, when })
    }

    fn vary(&mut self, node: &Node, names: &[String]) -> Vec<String> {
        let items = self.document.items(node, names.len());
        let mut checked = Vec::new();
        for (item, name) in items.into_iter().zip(names) {
            let Some(name) = self.text(item, text::header_name(name)) else { continue };
            if NEVER_VARY.contains(&name.as_str()) {
                let message = format!("no two requests have the same \"{name}\"");
                self.wrong(item, message, None);
            } else if checked.contains(&name) {
                self.wrong(item, format!("\"{name}\" is listed twice"), None);
            }
            checked.push(name);
        }
        checked.sort_unstable();
        checked
    }
}
