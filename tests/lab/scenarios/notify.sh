#!/bin/sh
# A GPU that strands: one mail in root's mailbox, not one per try; one more when it was home in between; the journal's MESSAGE_ID, metrics; Proxmox's own way.
# lab: --timeout 900
# tier: full
. /usr/local/lib/lab-home.sh
STRANDED=2c9f6b1d7e0a4f58a3d1c8b5e47f9062 box=/var/mail/root prom=/root/gpu-handoff.prom
mails() { wait_for 60 quiet; grep -c '^Subject: gpu-handoff on ' "$box" 2>/dev/null; }
in_journal() { echo $(($(journalctl -q -b -o cat MESSAGE_ID=$STRANDED | wc -l) - ${others:-0})); }
# has_mails N WHEN: the mail server delivers by itself, a little later
has_mails() { _n=$1; wait_for 30 sh -c "[ \"\$(grep -c '^Subject: gpu-handoff on ' $box)\" -ge $_n ]"; is "$(mails)" "$_n" "mails $2"; }
# metric LINE: sooner or later; while a try to bring it home is under way nothing is stranded
metric() { wait_for 60 grep -F "$1" $prom; grep -F "$1" $prom; }
# valid: what was written is whole, in the folder as node_exporter may read it
valid() { is "$(tail -n 1 $prom)" "# EOF" "the last line"; is "$(stat -c %a $prom)" 644 "mode"
	grep -vE '^# (HELP|TYPE|EOF)|^gpu_handoff_[a-z_]+\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\} [0-9.]+$' $prom && fail "no metric: the lines above"; return 0; }

others=$(in_journal) # in the same boot, by another scenario
[ -x /usr/sbin/sendmail ] || fail "there is no mail server in this userland"
install -m 660 -g mail /dev/null $box; setting "metrics = \"$prom\"" 'way = "unbind"' 'deadlines.grace = 2'; card_vm
within 90 0 qm start 111; away "at first"
wait_for 60 test -s $prom; wait_for 60 quiet; valid
metric "gpu_handoff_gpu_holder{gpu=\"$gpu\",holder=\"VM 111\"} 1"; metric "gpu_handoff_gpu_stranded{gpu=\"$gpu\"} 0"
[ -s $box ] && fail "a handoff that ended well was told: $(cat $box)"

say "the driver takes the card no more: it strands at each of four tries, and that is told once"
strand() { stub probe_fail -1; qm stop 111; wait_for 120 grep -q '"stranded"' $record; }
# The unit that has tried in vain stays failed until its next run.
home_again() { stub probe_fail 0; gpu-handoff recover; comes_home 60 "$1"
	is "$(systemctl list-units --failed --plain --no-legend 'gpu-handoff-home@*')" "" "$1: units that have failed"; }
strand
has_mails 1 "after it has stranded"
for try in 2 3 4; do gpu-handoff recover >/root/said 2>&1; is $? 4 "exit status of try $try"; done; cat /root/said
wait_for 60 quiet; is "$(mails)" 1 "mails after four tries"; is "$(in_journal)" 1 "lines with the MESSAGE_ID"
cat $box
for text in "To: root" "Auto-Submitted: auto-generated" "${gpu%.*} is stranded (VM 111)" "Hint: " "notify ="; do
	grep -qF "$text" $box || fail "not in the mail: $text"
done
valid; metric "gpu_handoff_gpu_stranded{gpu=\"$gpu\"} 1"; metric 'gpu_handoff_last_handoff_failed{direction="home"} 1'

say "it comes home, strands anew, and is told anew"
home_again "when the driver works again"; is "$(mails)" 1 "mails"
within 90 0 qm start 111; strand; has_mails 2 "after it has stranded again"
home_again "once more"; metric "gpu_handoff_gpu_holder{gpu=\"$gpu\",holder=\"host\"} 1"

say "off: the journal alone"
setting "metrics = \"$prom\"" 'way = "unbind"' 'deadlines.grace = 2' 'notify = "off"'; lines=$(in_journal)
within 90 0 qm start 111; strand; wait_for 60 quiet; is "$(mails)" 2 "mails"; is "$(in_journal)" $((lines + 1)) "lines"
home_again "off"

say "Proxmox's way, with stand-ins for its Perl: they write down the template, the data and the fields, and find the templates of the package"
setting "metrics = \"$prom\"" 'way = "unbind"' 'deadlines.grace = 2'
pm=/usr/share/perl5/PVE templates=/usr/share/pve-manager/templates/default
mkdir -p $pm $templates; : >$templates/vzdump-body.txt.hbs
echo 'package PVE::INotify; sub nodename { "pve" } 1;' >$pm/INotify.pm
cat >$pm/Notify.pm <<'END'
# Imitates error() of pve-cluster's PVE/Notify.pm: a template by its name, from the folder that proxmox-notify looks in.
package PVE::Notify;
sub error { my ($template, $data, $fields) = @_;
	for my $part ("subject", "body") {
		open(my $from, "<", "/usr/share/pve-manager/templates/default/$template-$part.txt.hbs") or die "no template $template-$part\n";
		local $/; my $text = <$from>; $text =~ s/\{\{([\w-]+)\}\}/exists $data->{$1} ? $data->{$1} : die "no $1\n"/ge;
		open(my $to, ">>", "/root/notified"); print $to "$part $fields->{type} $fields->{hostname}: $text"; } }
1;
END
within 90 0 qm start 111; strand; wait_for 60 quiet; wait_for 30 test -s /root/notified; cat /root/notified
grep -qF "subject gpu-handoff pve: gpu-handoff (pve): ${gpu%.*} is stranded (VM 111)" /root/notified || fail "the subject"
is "$(grep -c '^subject' /root/notified)" 1 "notifications"; is "$(mails)" 2 "mails beside it"
gpu-handoff recover >/dev/null 2>&1; wait_for 60 quiet; is "$(grep -c '^subject' /root/notified)" 1 "notifications after another try"
home_again "Proxmox's way"
say "Proxmox's way fails: a mail"
echo 'package PVE::Notify; sub error { die "no quorum\n" } 1;' >$pm/Notify.pm
within 90 0 qm start 111; strand; has_mails 3 "where Proxmox's way fails"; home_again "at last"
rm -rf $pm $templates/vzdump-body.txt.hbs $box
