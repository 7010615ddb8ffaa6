//! What becomes of traces.

use super::*;

/// What is told of spans, where requests are traced.
#[derive(Debug, Default)]
pub struct TraceMetrics {
    spans: [Counter; SpanResult::ALL.len()],
}

impl TraceMetrics {
    /// This became of so many.
    pub fn spans(&self, result: SpanResult, count: usize) {
        self.spans[result as usize].add(count as u64);
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.by_value(Id::TraceSpans, &[], SpanResult::ALL, SpanResult::as_str, &self.spans);
    }
}
