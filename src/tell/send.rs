//! Messages to people: through Proxmox's own notifications where it has them, by mail to root elsewhere.
//!
//! Whoever does not answer has its deadline, and what fails is said in one line of the journal: nothing depends on it.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::base::program::ask_with;
use crate::base::root::Root;
use crate::base::text::{foreign, one_line};
use crate::base::vmid::VmId;
use crate::tell::events::Event;
use crate::tell::mail::Message;

/// How long one way of sending may take: Proxmox may ask a server of the administrator's for each of its targets.
const WITHIN: Duration = Duration::from_secs(60);

/// Proxmox's notifications (pve-cluster, PVE/Notify.pm).
const NOTIFY_PM: &str = "/usr/share/perl5/PVE/Notify.pm";

/// A template of Proxmox's own. Where it is, messages are made of templates by name: before pve-manager 8.2 the text of the
/// template was an argument of the same functions.
const TEMPLATE: &str = "/usr/share/pve-manager/templates/default/vzdump-body.txt.hbs";

/// A program that takes a mail, which every mail server of Debian's brings (Debian Policy, 11.6).
const SENDMAIL: &str = "/usr/sbin/sendmail";

/// Title and text come on stdin, with a zero byte between them. `error(template, data, fields)`; the templates are
/// `gpu-handoff-subject.txt.hbs` and `gpu-handoff-body.txt.hbs` of this package, in the folder of Proxmox's own
/// (proxmox-notify, context/pve.rs, lookup_template); a text in HTML is made of the latter (renderer/mod.rs,
/// render_template). The fields are those that a matcher can ask for; Proxmox's own messages have the same two.
const PERL: &str = "use strict; use warnings; use PVE::INotify; use PVE::Notify; \
    my $text = do { local $/; <STDIN> }; utf8::decode($text); \
    my ($title, $message) = split(/\\0/, $text, 2); my $node = PVE::INotify::nodename(); \
    PVE::Notify::error('gpu-handoff', { hostname => $node, title => $title, message => $message }, \
    { type => 'gpu-handoff', hostname => $node });";

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// In words.
    pub why: String,
    /// Every way has refused it by itself, and in time: nobody has it, and it may be tried again.
    pub is_refused: bool,
}

/// Whom messages are given to.
pub trait Sink {
    /// Sends a message.
    ///
    /// # Errors
    /// Why it was not taken.
    fn send(&mut self, message: &Message) -> Result<(), NotSent>;
}

/// The host's own ways.
#[derive(Debug)]
pub struct Host {
    /// Where its files are.
    pub root: Root,
}

impl Sink for Host {
    fn send(&mut self, message: &Message) -> Result<(), NotSent> {
        let is_proxmox = self.root.exists(NOTIFY_PM) && self.root.exists(TEMPLATE);
        let notified = is_proxmox.then(|| by_proxmox(&["perl"], message));
        let (why, is_refused) = match notified {
            Some(Ok(())) => return Ok(()),
            Some(Err(not)) => (format!("by Proxmox's notifications: {}; ", not.why), not.is_refused),
            None => (String::new(), true),
        };
        // Rather twice than not at all: a target of Proxmox's that is slow may have got it.
        if !self.root.exists(SENDMAIL) {
            let why = format!(
                "{why}by mail: there is no {SENDMAIL}. Hint: install a mail server, such as postfix, or set notify = \"off\""
            );
            return Err(NotSent { why, is_refused });
        }
        by_mail(SENDMAIL, message).map_err(|not| NotSent {
            why: format!("{why}by mail: {}", not.why),
            is_refused: is_refused && not.is_refused,
        })
    }
}

/// Through Proxmox's notifications; `perl` is how that is called.
fn by_proxmox(perl: &[&str], message: &Message) -> Result<(), NotSent> {
    let words: Vec<&str> = perl.iter().copied().chain(["-e", PERL]).collect();
    hand_over(&words, &format!("{}\0{}", message.title, message.body))
}

/// By mail to root. A line with nothing but a dot is a part of it (`-i`), and who gets it is no header's to say.
fn by_mail(sendmail: &str, message: &Message) -> Result<(), NotSent> {
    hand_over(&[sendmail, "-i", "--", "root"], &message.mail())
}

fn hand_over(words: &[&str], text: &str) -> Result<(), NotSent> {
    let begun = Instant::now();
    let not = |why| NotSent {
        why,
        // Who was ended may have passed it on before.
        is_refused: begun.elapsed() < WITHIN,
    };
    match ask_with(words, Some(text.as_bytes()), WITHIN).map_err(not)? {
        (true, _) => Ok(()),
        (false, said) => Err(not(format!("{} failed: {}", words[0], foreign(&one_line(&said))))),
    }
}

/// Says what is news in the journal.
pub fn say(news: &[Event]) {
    for event in news {
        warn!(
            vmid = number(event),
            phase = PHASE,
            message_id = event.kind.message_id(),
            device = event.device,
            "{}",
            event.text
        );
    }
}

/// What these lines are of, in the journal.
const PHASE: &str = "tell";

fn number(event: &Event) -> Option<u32> {
    event.vmid.map(VmId::get)
}

/// Sends each of these unless it is not to be sent. Those that were refused: they may be sent again.
pub fn send<'a>(
    events: impl IntoIterator<Item = &'a Event>,
    host: &str,
    is_off: impl Fn(&Event) -> bool,
    sink: &mut dyn Sink,
) -> Vec<&'a Event> {
    let mut refused = Vec::new();
    for event in events {
        if is_off(event) {
            continue;
        }
        if let Err(NotSent { why, is_refused }) = sink.send(&Message::of(event, host)) {
            warn!(
                vmid = number(event),
                phase = PHASE,
                "nobody was told that {}: {why}",
                event.title
            );
            refused.extend(is_refused.then_some(event));
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn message() -> Message {
        Message {
            host: "pve".to_owned(),
            title: "0000:01:00 is stranded (VM 111)".to_owned(),
            body: "caf\u{e9} of \"quotes\" and $dollars @ars {{braces}}\n.\n".to_owned(),
        }
    }

    /// A program in this folder that runs these lines of sh.
    fn script(dir: &Path, lines: &str) -> String {
        let path = dir.join("sendmail");
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_mail_goes_to_root_whole_and_what_the_mail_server_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let got = dir.path().join("got");
        let sendmail = script(dir.path(), &format!("echo \"$@\" >{0}; cat >>{0}", got.display()));
        by_mail(&sendmail, &message()).unwrap();
        let expected = format!("-i -- root\n{}", message().mail());
        assert_eq!(fs::read_to_string(got).unwrap(), expected);
        let sendmail = script(dir.path(), "echo 'queue file: no space\\nleft' >&2; exit 75");
        let NotSent { why, is_refused } = by_mail(&sendmail, &message()).unwrap_err();
        assert!(
            is_refused && why.ends_with("sendmail failed: queue file: no space left"),
            "{why}"
        );
    }

    #[test]
    fn without_proxmox_and_without_a_mail_server_there_is_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host {
            root: Root::at(dir.path()),
        };
        let NotSent { why, is_refused } = host.send(&message()).unwrap_err();
        assert!(is_refused);
        let expected = "by mail: there is no /usr/sbin/sendmail. Hint: install a mail server, such as postfix, or set notify = \
                        \"off\"";
        assert_eq!(why, expected);
    }

    /// Real Perl, and stand-ins for the two modules of Proxmox's: they write down what they are called with.
    #[test]
    fn proxmox_is_given_the_template_the_data_and_the_fields() {
        if ask_with(&["perl", "-e", "1"], None, WITHIN).is_err() {
            return; // no Perl here; a host of Proxmox's has it
        }
        let dir = tempfile::tempdir().unwrap();
        let pve = dir.path().join("PVE");
        fs::create_dir(&pve).unwrap();
        fs::write(
            pve.join("INotify.pm"),
            "package PVE::INotify; sub nodename { 'pve1' } 1;",
        )
        .unwrap();
        let notify = "package PVE::Notify; sub error { my ($template, $data, $fields) = @_; \
                      open(my $to, '>:utf8', \"$INC{'PVE/Notify.pm'}.got\"); print $to \"template $template\\n\"; \
                      print $to \"data $_ $data->{$_}\\n\" for sort keys %$data; \
                      print $to \"field $_ $fields->{$_}\\n\" for sort keys %$fields; } 1;";
        fs::write(pve.join("Notify.pm"), notify).unwrap();
        let include = format!("-I{}", dir.path().display());
        by_proxmox(&["perl", &include], &message()).unwrap();
        let Message { title, body, .. } = message();
        let expected = format!(
            "template gpu-handoff\ndata hostname pve1\ndata message {body}\ndata title {title}\nfield hostname \
             pve1\nfield type gpu-handoff\n"
        );
        assert_eq!(fs::read_to_string(pve.join("Notify.pm.got")).unwrap(), expected);
        fs::write(
            pve.join("Notify.pm"),
            "package PVE::Notify; sub error { die \"no quorum\\n\" } 1;",
        )
        .unwrap();
        let not = by_proxmox(&["perl", &include], &message()).unwrap_err();
        assert_eq!(not.why, "perl failed: no quorum");
    }

    /// What a template uses is among what it is given.
    #[test]
    fn the_templates_ask_for_what_they_are_given() {
        for (template, expected) in [
            (
                include_str!("../../debian/notify/gpu-handoff-subject.txt.hbs"),
                "gpu-handoff ({{hostname}}): {{title}}\n",
            ),
            (
                include_str!("../../debian/notify/gpu-handoff-body.txt.hbs"),
                "{{message}}\n",
            ),
        ] {
            assert_eq!(template, expected);
            for name in template
                .split("{{")
                .skip(1)
                .filter_map(|t| t.split_once("}}"))
                .map(|t| t.0)
            {
                assert!(PERL.contains(&format!("{name} =>")), "{name}");
            }
        }
    }
}
