//! What is done to bodies.

use crate::check::Checker;
use crate::read::tree::Node;
use crate::schema::{self, Switch};
use crate::validated::{Batch, Compress, Decompress};

impl Checker<'_> {
    pub(super) fn compress(
        &mut self,
        node: &Node,
        compress: &Switch<schema::Compress>,
    ) -> Option<Compress> {
        let Switch::On(compress) = compress else { return None };
        let (at, algorithms) = (node.at("algorithms"), &compress.algorithms);
        if algorithms.is_empty() {
            let help = "switch compression off with `compress: off`".to_owned();
            self.wrong(at, "is empty: at least one is needed", Some(help));
        }
        let items = self.document.items(at, algorithms.len());
        for (index, (item, coding)) in items.into_iter().zip(algorithms).enumerate() {
            if algorithms[..index].contains(coding) {
                self.wrong(item, format!("\"{}\" is listed twice", coding.name()), None);
            }
        }
        let (min, events) = (compress.min.0, compress.events);
        Some(Compress { algorithms: algorithms.clone(), min, events })
    }
}

pub(super) fn decompress(decompress: &Switch<schema::Decompress>) -> Option<Decompress> {
    let Switch::On(decompress) = decompress else { return None };
    Some(Decompress { max: decompress.max.0, ratio: decompress.ratio.0 })
}

pub(super) fn batch(batch: &Switch<schema::Batch>) -> Option<Batch> {
    let Switch::On(batch) = batch else { return None };
    let requests = batch.requests.0 as usize;
    Some(Batch { window: batch.window.0, requests, bytes: batch.bytes.0 })
}
