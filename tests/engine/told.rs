//! What people are told of a handoff that leaves something: once for each event, however often it is tried.

use std::time::Duration;

use gpu_handoff::model::act::Act;
use gpu_handoff::model::plan::Direction;
use gpu_handoff::model::record::Record;
use gpu_handoff::settings::values::Services;
use gpu_handoff::state::history::{Handoff, Past};
use gpu_handoff::tell::events::{Kind, Seen, events};
use gpu_handoff::tell::mail::Message;
use gpu_handoff::tell::send::{NotSent, Sink, say, send};
use gpu_handoff::tell::told::Told;

use crate::common::hosts::{OLLAMA, add_ollama};
use crate::common::{End, Fault, Model, ProbeFault, Session, Twist, addr, host};
use crate::{logged, records};

/// Somebody who gets messages, or a mail server that takes none.
#[derive(Default)]
struct People {
    got: Vec<Message>,
    is_deaf: bool,
    /// It has said no at once.
    refuses: bool,
}

impl Sink for People {
    fn send(&mut self, message: &Message) -> Result<(), NotSent> {
        let why = match (self.is_deaf, self.refuses) {
            (true, _) => "by mail: sendmail gave no answer within 60 s".to_owned(),
            (_, true) => {
                return Err(NotSent {
                    why: "by mail: sendmail failed".to_owned(),
                    is_refused: true,
                });
            }
            _ => String::new(),
        };
        self.got.push(message.clone());
        match self.is_deaf {
            true => Err(NotSent { why, is_refused: false }),
            false => Ok(()),
        }
    }
}

/// A host on which each run is followed by whoever tells.
struct World {
    model: Model,
    session: Session,
    past: Vec<Handoff>,
    /// As the file has it between two that tell.
    told: tempfile::TempDir,
    people: People,
    is_off: bool,
    /// Ways out so far: the model's records do not know them apart.
    generation: u64,
}

impl World {
    fn new(model: Model) -> Self {
        World {
            model,
            session: Session::new(&[addr(1, 0)]),
            past: Vec::new(),
            told: tempfile::tempdir().unwrap(),
            people: People::default(),
            is_off: false,
            generation: 0,
        }
    }

    /// A run, and what is told after it.
    fn run(&mut self, direction: Direction) -> End {
        let from = self.model.acts.len();
        let end = match direction {
            Direction::Out => {
                self.generation += 1;
                self.session.out(&mut self.model)
            }
            Direction::Home => self.session.home(&mut self.model),
        };
        let failed: Vec<usize> = self.model.faults.0.iter().map(|(at, _)| *at).collect();
        let acts = self.model.acts.iter().enumerate().skip(from);
        let acts = acts.map(|(at, act)| {
            let error = failed.contains(&at).then_some("systemd says no");
            Past::of(act, Duration::from_millis(5), error.as_ref())
        });
        let outcome = match &end {
            End::Done => "done",
            End::Restored(why) | End::RestoredBut(why) | End::NotRestored(why) => why,
            end => panic!("{end:?}"),
        };
        self.past.push(Handoff {
            time: 1_795_249_367 + self.past.len() as u64,
            boot_id: "boot".to_owned(),
            owner: self.session.owner.to_string(),
            direction,
            cards: vec!["0000:01:00".to_owned()],
            outcome: outcome.to_owned(),
            took_ms: 5,
            acts: acts.collect(),
            forgotten: None,
        });
        self.tell(false);
        end
    }

    fn tell(&mut self, is_abandoned: bool) {
        let records: Vec<Record> = records(&self.model)
            .into_iter()
            .map(|mut record| {
                record.generation = self.generation;
                record.look_on(None, Duration::ZERO, |g| self.model.is_alive(g.number));
                record
            })
            .collect();
        let now = events(&Seen {
            records: &records,
            past: &self.past,
            boot: "boot",
            abandoned: is_abandoned.then(|| "111".parse().unwrap()),
        });
        let mut told = Told::read(self.told.path()).unwrap();
        let unsent = told.unsent(&now);
        let news = told.news(now);
        told.write(self.told.path()).unwrap();
        say(&news);
        let is_off = self.is_off;
        for event in send(unsent.iter().chain(&news), "pve", |_| is_off, &mut self.people) {
            told.refused(event);
        }
        told.write(self.told.path()).unwrap();
    }

    /// What was told so far, in a few words.
    fn titles(&self) -> Vec<&str> {
        self.people.got.iter().map(|m| m.title.as_str()).collect()
    }

    /// A way home on which the driver does not take the card.
    fn strands(&mut self) {
        self.model.probe_faults = vec![("nvidia", ProbeFault::Fails(30))];
        let end = self.run(Direction::Home);
        self.model.probe_faults.clear();
        assert!(matches!(end, End::NotRestored(_)), "{end:?}");
    }
}

/// A card that no reset helps.
fn stubborn() -> Model {
    let mut model = host(1);
    model.set_aside(addr(1, 1));
    model
}

const STRANDED: &str = "0000:01:00 is stranded (VM 111)";

#[test]
fn a_gpu_that_strands_is_told_once_and_once_more_when_it_was_home_in_between() {
    let mut world = World::new(stubborn());
    assert!(matches!(world.run(Direction::Out), End::Done));
    assert_eq!(world.titles(), [""; 0]);
    for _ in 0..3 {
        world.strands();
        world.tell(true);
        assert_eq!(world.titles(), [STRANDED]);
    }
    let body = &world.people.got[0].body;
    assert!(body.starts_with("VM 111: the way home failed ("), "{body}");
    assert!(body.contains("\n\nHint: "), "{body}");
    assert!(
        body.contains("'gpu-handoff\nrecover'") || body.contains("'gpu-handoff recover'"),
        "{body}"
    );
    for _ in 0..2 {
        assert!(matches!(world.run(Direction::Home), End::Done));
        assert!(matches!(world.run(Direction::Out), End::Done));
    }
    assert_eq!(world.titles(), [STRANDED]);
    world.strands();
    world.strands();
    assert_eq!(world.titles(), [STRANDED; 2]);
}

#[test]
fn what_is_off_is_in_the_journal_alone_and_what_cannot_be_sent_is_a_line_there() {
    for (is_off, is_deaf, sent) in [(true, false, 0), (false, true, 1)] {
        let mut world = World::new(stubborn());
        (world.is_off, world.people.is_deaf) = (is_off, is_deaf);
        assert!(matches!(world.run(Direction::Out), End::Done));
        let ((), log) = logged(|| {
            world.strands();
            world.strands();
        });
        assert_eq!(world.people.got.len(), sent);
        let id = format!("message_id=\"{}\"", Kind::Stranded.message_id());
        assert_eq!(log.matches(&id).count(), 1, "{log}");
        let line = "nobody was told that 0000:01:00 is stranded (VM 111): by mail: sendmail gave no answer within 60 s";
        assert_eq!(log.matches(line).count(), usize::from(is_deaf), "{log}");
    }
}

#[test]
fn a_message_that_everybody_has_refused_is_sent_again_and_the_journal_has_it_once() {
    let mut world = World::new(stubborn());
    world.people.refuses = true;
    assert!(matches!(world.run(Direction::Out), End::Done));
    let ((), log) = logged(|| {
        world.strands();
        world.tell(false);
        assert_eq!(world.titles(), [""; 0]);
        world.people.refuses = false;
        world.tell(false);
        world.tell(false);
    });
    assert_eq!(world.titles(), [STRANDED]);
    let id = format!("message_id=\"{}\"", Kind::Stranded.message_id());
    assert_eq!(log.matches(&id).count(), 1, "{log}");
    // What is home meanwhile is told to nobody.
    world.people.refuses = true;
    assert!(matches!(world.run(Direction::Home), End::Done));
    assert!(matches!(world.run(Direction::Out), End::Done));
    world.strands();
    world.people.refuses = false;
    assert!(matches!(world.run(Direction::Home), End::Done));
    assert_eq!(world.titles(), [STRANDED]);
}

#[test]
fn a_call_that_is_stuck_is_told_and_what_it_leaves_is_no_news() {
    let mut world = World::new(host(1));
    let plan = world.session.plan_out(&mut world.model).unwrap();
    let is_unbind = |act: &Act| matches!(act, Act::Unbind { .. } | Act::UnloadModule { .. });
    let at = plan.steps.iter().position(|step| is_unbind(&step.act)).unwrap();
    world.model.faults.0 = vec![(at, Fault::Twisted(Twist::Hangs))];
    assert!(matches!(world.run(Direction::Out), End::NotRestored(_)));
    assert_eq!(world.titles(), ["0000:01:00 is wedged (VM 111)"]);
    world.tell(false);
    world.tell(true);
    // It ends late: what is on record is stranded from then on.
    world.model.let_go_of_calls();
    world.tell(false);
    assert_eq!(world.titles().len(), 1);
}

#[test]
fn a_gpu_that_does_not_come_home_though_nobody_needs_it_is_told_once_and_what_is_worse_after_it() {
    let mut world = World::new(stubborn());
    assert!(matches!(world.run(Direction::Out), End::Done));
    for _ in 0..3 {
        world.tell(true);
        assert_eq!(world.titles(), ["0000:01:00 is abandoned (VM 111)"]);
    }
    let body = &world.people.got[0].body;
    assert!(
        body.contains("'journalctl -u\ngpu-handoff-home@111.service'") || body.contains("gpu-handoff-home@111.service")
    );
    world.strands();
    world.tell(true);
    assert_eq!(world.titles(), ["0000:01:00 is abandoned (VM 111)", STRANDED]);
}

#[test]
fn a_service_that_does_not_start_again_is_told_until_it_has() {
    let mut model = host(1);
    add_ollama(&mut model);
    let mut world = World::new(model);
    world.session.settings.services = Services::Also(vec![OLLAMA.to_owned()]);
    assert!(matches!(world.run(Direction::Out), End::Done));
    let mut undisturbed = world.model.fork();
    assert!(matches!(world.session.home(&mut undisturbed), End::Done));
    let start = |act: &Act| matches!(act, Act::StartUnit { name, .. } if name.on_host() == Some(OLLAMA));
    let at = undisturbed.acts.iter().rposition(start).unwrap();
    world.model.faults.0 = vec![(at, Fault::Fails)];
    let end = world.run(Direction::Home);
    assert!(matches!(end, End::Done), "no GPU waits for it: {end:?}");
    world.model.faults.0.clear();
    let down = "ollama does not start again (VM 111)";
    assert_eq!(world.titles(), [down]);
    let body = &world.people.got[0].body;
    let hint = "Hint: see 'systemctl status ollama.service' for why, then 'systemctl\nstart ollama.service'.\n";
    assert!(body.contains(hint), "{body}");
    // It is down still, whoever comes and goes.
    for direction in [Direction::Out, Direction::Home] {
        assert!(matches!(world.run(direction), End::Done));
    }
    assert_eq!(world.titles(), [down]);
}
