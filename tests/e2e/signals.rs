//! What endpoints say of their own load, and what a scheduler in front says: who is asked, who is believed, for how
//! long, and where requests go then.

mod agent;
mod gateway;
mod orca;
mod scrape;
mod stub;
