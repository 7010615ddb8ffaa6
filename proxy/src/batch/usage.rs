//! Whose tokens they were.
//!
//! Why: the upstream counts tokens for the whole call, and somebody may pay by them. What is given
//! to the requests has to add up to the whole, exactly.
//!
//! What it decides: each number is dealt out by the method of the largest remainder, above a floor
//! that is certain:
//!
//! - `prompt_tokens`: token prompts count their ids, and what is beyond (special tokens) goes by
//!   the number of prompts: exact when every prompt has as many. Text prompts have one token each,
//!   and the rest goes by bytes of decoded text: an estimate.
//! - `completion_tokens`: an output that lists its tokens (`token_ids`, or `logprobs.tokens`
//!   without `echo`) counts them, and one that ended by `length` has `max_tokens`; the rest goes by
//!   bytes of text, without the echoed prompt, plus one for the end: an estimate.
//! - `total_tokens`: the sum of the two when it is their sum in the whole.
//! - Other whole numbers, also those in nested objects such as `prompt_tokens_details`: in
//!   proportion to the parts of prompt, completion or total, by what their name speaks of. A part
//!   thus never exceeds what it is part of.
//!
//! Everything that is no whole number (times, costs, names) is given to each as it is.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::compatible::Kind;
use super::json::{self, Members};
use super::merge::{Plan, Share};

/// How deep objects in the usage are looked into.
const MAX_DEPTH: usize = 3;

/// A bound on each number in a usage: sums of a batch stay far below an overflow.
const MAX_TOKENS: u64 = 1 << 53;

/// What each request is known to have, and by what the rest is dealt out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scale {
    floors: Vec<u64>,
    weights: Vec<u64>,
}

impl Scale {
    /// How prompts weigh.
    fn prompts(plan: &Plan) -> Self {
        let count = |share: &Share| share.sizes.len() as u64;
        let size = |share: &Share| share.sizes.iter().sum();
        let counts = plan.shares.iter().map(count).collect();
        let sizes = plan.shares.iter().map(size).collect();
        match plan.terms.kind {
            Kind::Text => Self { floors: counts, weights: sizes },
            Kind::Tokens => Self { floors: sizes, weights: counts },
        }
    }

    /// How outputs weigh: `outputs` has those of each request.
    fn outputs(plan: &Plan, outputs: &[&[Members<'_>]]) -> Self {
        let mut scale = Self::default();
        for (share, outputs) in plan.shares.iter().zip(outputs) {
            let (mut floor, mut weight) = (0_u64, 0_u64);
            for (k, output) in outputs.iter().enumerate() {
                let prompt = share.sizes[k / plan.terms.choices];
                match tokens(plan, output) {
                    Some(tokens) => floor = floor.saturating_add(tokens),
                    None => weight = weight.saturating_add(text(plan, output, prompt)),
                }
            }
            scale.floors.push(floor);
            scale.weights.push(weight);
        }
        scale
    }

    fn proportional(weights: &[u64]) -> Self {
        Self { floors: vec![0; weights.len()], weights: weights.to_vec() }
    }

    /// Deals out `whole`: the parts add up to it, each has its floor if there is enough for all
    /// floors, and each is within one of its exact proportion of the rest.
    fn deal(&self, whole: u64) -> Vec<u64> {
        let sum = |list: &[u64]| list.iter().map(|&part| u128::from(part)).sum::<u128>();
        match u128::from(whole).checked_sub(sum(&self.floors)) {
            Some(rest) if sum(&self.weights) == 0 => {
                share_out(rest, &self.floors, &vec![1; self.weights.len()])
            }
            Some(rest) => share_out(rest, &self.floors, &self.weights),
            None => share_out(whole.into(), &vec![0; self.floors.len()], &self.floors),
        }
    }
}

/// Adds `rest` to the floors by weight; the weights must not all be zero.
fn share_out(rest: u128, floors: &[u64], weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let exact = weights.iter().map(|&weight| rest * u128::from(weight));
    let (mut parts, remainders): (Vec<u128>, Vec<u128>) =
        exact.map(|exact| (exact / sum, exact % sum)).unzip();
    let left = rest - parts.iter().sum::<u128>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| u128::MAX - remainders[i]);
    order.iter().take(left as usize).for_each(|&i| parts[i] += 1);
    parts.iter().zip(floors).map(|(&part, &floor)| part as u64 + floor).collect()
}

/// The number of tokens of an output, where it is known.
fn tokens(plan: &Plan, output: &Members<'_>) -> Option<u64> {
    let listed = || {
        let ids = output.get("token_ids").and_then(json::list_length);
        ids.or_else(|| {
            let logprobs = Members::parse(output.get("logprobs")?.get().as_bytes())?;
            json::list_length(logprobs.get("tokens")?)
        })
    };
    let by_length = || {
        let reason = output.get("finish_reason").and_then(json::text)?;
        plan.terms.max_tokens.filter(|_| reason == "length")
    };
    // With `echo`, lists may hold the prompt as well.
    let listed = if plan.terms.echo { None } else { listed() };
    listed.or_else(by_length)
}

/// The weight of an output whose tokens are not known, for a prompt of the given size.
fn text(plan: &Plan, output: &Members<'_>, prompt: u64) -> u64 {
    let bytes = output.get("text").and_then(json::text_length).unwrap_or(0);
    let echoed = match plan.terms.kind {
        _ if !plan.terms.echo => 0,
        Kind::Text => prompt,
        // A token of English text has some four bytes.
        Kind::Tokens => prompt.saturating_mul(4),
    };
    bytes.saturating_sub(echoed) + 1
}

/// Deals out a usage: one JSON value for each request. `outputs` has those of each request.
pub(super) fn attribute(
    usage: &RawValue,
    plan: &Plan,
    outputs: &[&[Members<'_>]],
) -> Option<Vec<Vec<u8>>> {
    let mut parts = vec![Vec::new(); plan.requests()];
    if json::is_null(usage) {
        put(&mut parts, usage.get().as_bytes());
        return Some(parts);
    }
    let members = Members::parse(usage.get().as_bytes())?;
    let dealt = Dealt::of(&members, plan, outputs)?;
    dealt.object(&members, None, MAX_DEPTH, &mut parts)?;
    Some(parts)
}

/// What a number speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matter {
    Prompt,
    Completion,
    Total,
}

impl Matter {
    fn of(name: &str) -> Self {
        let about = |words: &[&str]| words.iter().any(|word| name.contains(word));
        match () {
            () if about(&["prompt", "input", "cache"]) => Self::Prompt,
            () if about(&["completion", "output", "reasoning", "prediction"]) => Self::Completion,
            () => Self::Total,
        }
    }
}

/// The three numbers that everybody knows, dealt out.
struct Dealt {
    prompt: Vec<u64>,
    completion: Vec<u64>,
    total: Vec<u64>,
}

impl Dealt {
    /// `None` when a number is out of range.
    fn of(members: &Members<'_>, plan: &Plan, outputs: &[&[Members<'_>]]) -> Option<Self> {
        let number = |name| members.get(name).and_then(json::whole);
        let (prompts, completions) = (number("prompt_tokens"), number("completion_tokens"));
        let prompt = Scale::prompts(plan).deal(bounded(prompts.unwrap_or(0))?);
        let completion = match bounded(completions.unwrap_or(0))? {
            0 => vec![0; plan.requests()],
            tokens => Scale::outputs(plan, outputs).deal(tokens),
        };
        let sums: Vec<u64> = prompt.iter().zip(&completion).map(|(p, c)| p + c).collect();
        let total = match number("total_tokens") {
            None => sums,
            Some(total) if total == sums.iter().sum::<u64>() => sums,
            Some(total) if prompts.is_none() => Scale::prompts(plan).deal(bounded(total)?),
            Some(total) => Scale::proportional(&sums).deal(bounded(total)?),
        };
        Some(Self { prompt, completion, total })
    }

    fn parts(&self, name: &str, inherited: Option<Matter>, whole: u64) -> Option<Vec<u64>> {
        match (name, inherited) {
            ("prompt_tokens", None) => return Some(self.prompt.clone()),
            ("completion_tokens", None) => return Some(self.completion.clone()),
            ("total_tokens", None) => return Some(self.total.clone()),
            _ => {}
        }
        let weights = match inherited.unwrap_or_else(|| Matter::of(name)) {
            Matter::Prompt if self.prompt.iter().any(|&part| part > 0) => &self.prompt,
            Matter::Completion if self.completion.iter().any(|&part| part > 0) => &self.completion,
            Matter::Prompt | Matter::Completion | Matter::Total => &self.total,
        };
        Some(Scale::proportional(weights).deal(bounded(whole)?))
    }

    fn object(
        &self,
        members: &Members<'_>,
        matter: Option<Matter>,
        depth: usize,
        parts: &mut [Vec<u8>],
    ) -> Option<()> {
        if members.repeated(Cow::Borrowed) {
            return None;
        }
        put(parts, b"{");
        for (i, (name, value)) in members.0.iter().enumerate() {
            parts.iter_mut().for_each(|part| json::put_name(part, name, i == 0));
            self.value(name, value, matter, depth, parts)?;
        }
        put(parts, b"}");
        Some(())
    }

    fn value(
        &self,
        name: &str,
        value: &RawValue,
        matter: Option<Matter>,
        depth: usize,
        parts: &mut [Vec<u8>],
    ) -> Option<()> {
        let text = value.get().as_bytes();
        if let Some(whole) = json::whole(value) {
            let dealt = self.parts(name, matter, whole)?;
            let numbers = parts.iter_mut().zip(dealt);
            numbers
                .for_each(|(part, number)| part.extend_from_slice(number.to_string().as_bytes()));
        } else if depth > 0 && text.starts_with(b"{") {
            let matter = matter.unwrap_or_else(|| Matter::of(name));
            self.object(&Members::parse(text)?, Some(matter), depth - 1, parts)?;
        } else {
            put(parts, text);
        }
        Some(())
    }
}

fn bounded(tokens: u64) -> Option<u64> {
    (tokens <= MAX_TOKENS).then_some(tokens)
}

fn put(parts: &mut [Vec<u8>], bytes: &[u8]) {
    parts.iter_mut().for_each(|part| part.extend_from_slice(bytes));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::compatible::Ask;
    use super::super::merge::merge;
    use super::*;

    fn plan(path: &str, bodies: &[&str]) -> Plan {
        let parse =
            |body: &&str| Ask::parse(path, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        let asks: Vec<Ask> = bodies.iter().map(parse).collect();
        merge(&asks).unwrap().plan
    }

    fn dealt(plan: &Plan, outputs: &[&[&str]], usage: &str) -> Vec<String> {
        let parse = |texts: &&[&str]| -> Vec<Members<'static>> {
            let parse = |text: &&str| Members::parse(text.to_string().leak().as_bytes()).unwrap();
            texts.iter().map(parse).collect()
        };
        let outputs: Vec<_> = outputs.iter().map(parse).collect();
        let outputs: Vec<_> = outputs.iter().map(Vec::as_slice).collect();
        let parts = attribute(serde_json::from_str(usage).unwrap(), plan, &outputs).unwrap();
        parts.into_iter().map(|part| String::from_utf8(part).unwrap()).collect()
    }

    #[test]
    fn parts_add_up_and_keep_their_proportions() {
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let n = rng.random_range(1..40);
            let mut numbers = |most| (0..n).map(|_| rng.random_range(0..=most)).collect::<Vec<_>>();
            let scale = Scale { floors: numbers(20), weights: numbers(1_000_000) };
            let whole = rng.random_range(0..100_000);
            let parts = scale.deal(whole);
            assert_eq!(parts.iter().sum::<u64>(), whole, "seed {seed}");
            let floors: u64 = scale.floors.iter().sum();
            let weights: u64 = scale.weights.iter().sum();
            if whole >= floors && weights > 0 {
                for (i, &part) in parts.iter().enumerate() {
                    let rest = (whole - floors) as f64;
                    let exact = rest * scale.weights[i] as f64 / weights as f64;
                    let above = (part - scale.floors[i]) as f64;
                    assert!((above - exact).abs() < 1.0, "seed {seed}: {above} for {exact}");
                }
            }
        }
    }

    #[test]
    fn dealing_survives_extremes() {
        let scale = Scale { floors: vec![u64::MAX; 3], weights: vec![u64::MAX; 3] };
        assert_eq!(scale.deal(u64::MAX).iter().sum::<u64>(), u64::MAX);
        assert_eq!(scale.deal(0), [0, 0, 0]);
        let nothing = Scale { floors: vec![0; 3], weights: vec![0; 3] };
        assert_eq!(nothing.deal(4), [2, 1, 1]);
    }

    #[test]
    fn token_prompts_are_counted_exactly() {
        let plan =
            plan("/v1/embeddings", &[r#"{"input":[1,2,3]}"#, r#"{"input":[[1],[2,3,4,5]]}"#]);
        let usage =
            |prompt: u64| format!(r#"{{"prompt_tokens":{prompt}, "total_tokens":{prompt}}}"#);
        let expected = |parts: [u64; 2]| parts.map(|n| usage(n).replace(' ', ""));
        assert_eq!(dealt(&plan, &[&[], &[]], &usage(8)), expected([3, 5]));
        // Two special tokens around each of the three prompts.
        assert_eq!(dealt(&plan, &[&[], &[]], &usage(14)), expected([5, 9]));
        // Cut by the server: by what was sent.
        assert_eq!(dealt(&plan, &[&[], &[]], &usage(4)), expected([2, 2]));
    }

    #[test]
    fn text_prompts_weigh_by_their_text() {
        let plan = plan(
            "/v1/embeddings",
            &[r#"{"input":"12345678"}"#, r#"{"input":["1234","\u0031234"]}"#],
        );
        let usage = r#"{"prompt_tokens":11,"total_tokens":11}"#;
        let expected =
            [r#"{"prompt_tokens":5,"total_tokens":5}"#, r#"{"prompt_tokens":6,"total_tokens":6}"#];
        assert_eq!(dealt(&plan, &[&[], &[]], usage), expected);
    }

    #[test]
    fn outputs_weigh_by_what_is_known_of_them() {
        let body = r#"{"prompt":"a","max_tokens":16}"#;
        let plan = plan("/v1/completions", &[body, body, body, body]);
        let outputs: &[&[&str]] = &[
            &[r#"{"text":"x","finish_reason":"length"}"#],
            &[r#"{"text":"x","token_ids":[1,2,3]}"#],
            &[r#"{"text":"x","logprobs":{"tokens":["a","b"]}}"#],
            &[r#"{"text":"a long text","finish_reason":"stop","logprobs":null}"#],
        ];
        let usage = r#"{"prompt_tokens":4,"completion_tokens":30,"total_tokens":34}"#;
        let tokens: Vec<_> = [16, 3, 2, 9]
            .map(|n| {
                format!(r#"{{"prompt_tokens":1,"completion_tokens":{n},"total_tokens":{}}}"#, n + 1)
            })
            .into();
        assert_eq!(dealt(&plan, outputs, usage), tokens);
    }

    #[test]
    fn echoed_prompts_do_not_weigh() {
        let body = |prompt: &str| format!(r#"{{"prompt":"{prompt}","echo":true}}"#);
        let plan = plan("/v1/completions", &[&body("a prompt"), &body("b")]);
        let outputs: &[&[&str]] = &[
            &[r#"{"text":"a prompt1234567","token_ids":[1,2]}"#],
            &[r#"{"text":"b1234567","finish_reason":"length"}"#],
        ];
        let usage = r#"{"completion_tokens":10}"#;
        assert_eq!(dealt(&plan, outputs, usage), [r#"{"completion_tokens":5}"#; 2]);
    }

    #[test]
    fn details_are_parts_of_their_whole() {
        let plan = plan("/v1/completions", &[r#"{"prompt":[1,2,3]}"#, r#"{"prompt":[1]}"#]);
        let outputs: &[&[&str]] = &[&[r#"{"token_ids":[1]}"#], &[r#"{"token_ids":[1,2,3]}"#]];
        let usage = r#"{"prompt_tokens":4,"completion_tokens":4,"total_tokens":8,
            "prompt_tokens_details":{"cached_tokens":4,"x":null},
            "completion_tokens_details":{"reasoning_tokens":4},
            "total_time":0.250,"unit":"token","requests":2}"#;
        let part = |prompt: u64, completion: u64| {
            format!(
                "{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\
                \"total_tokens\":4,\"prompt_tokens_details\":{{\"cached_tokens\":{prompt},\
                \"x\":null}},\"completion_tokens_details\":{{\"reasoning_tokens\":{completion}}},\
                \"total_time\":0.250,\"unit\":\"token\",\"requests\":1}}"
            )
        };
        assert_eq!(dealt(&plan, outputs, usage), [part(3, 1), part(1, 3)]);
    }

    #[test]
    fn a_total_that_is_no_sum_is_dealt_out_too() {
        let plan = plan("/v1/embeddings", &[r#"{"input":[1,2,3]}"#, r#"{"input":[1]}"#]);
        let only_total = dealt(&plan, &[&[], &[]], r#"{"total_tokens":4}"#);
        assert_eq!(only_total, [r#"{"total_tokens":3}"#, r#"{"total_tokens":1}"#]);
        let more = dealt(&plan, &[&[], &[]], r#"{"prompt_tokens":4,"total_tokens":8}"#);
        let expected =
            [r#"{"prompt_tokens":3,"total_tokens":6}"#, r#"{"prompt_tokens":1,"total_tokens":2}"#];
        assert_eq!(more, expected);
    }

    #[test]
    fn strange_usages_are_not_dealt_out() {
        let plan = plan("/v1/embeddings", &[r#"{"input":"a"}"#, r#"{"input":"b"}"#]);
        assert_eq!(dealt(&plan, &[&[], &[]], "null"), ["null", "null"]);
        for usage in ["7", "[]", r#"{"x":1,"x":2}"#, r#"{"prompt_tokens":18446744073709551615}"#] {
            let usage: &RawValue = serde_json::from_str(usage).unwrap();
            assert!(attribute(usage, &plan, &[&[], &[]]).is_none(), "{usage}");
        }
    }
}
