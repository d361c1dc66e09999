# What a Windows guest makes of a GPU that was passed through. Changes nothing.
#   powershell -ExecutionPolicy Bypass -File probe.ps1
# Each line is ok, note or wrong; the exit status is 1 if something is wrong.
$wrong = 0
function Ok($text) { "ok:    $text" }
function Note($text) { "note:  $text" }
function Wrong($text) { $script:wrong = 1; "wrong: $text" }

$cards = @(Get-CimInstance Win32_PnPEntity | Where-Object { $_.PNPDeviceID -like 'PCI\VEN_10DE*' })
$displays = @($cards | Where-Object { $_.PNPClass -eq 'Display' })
if ($displays.Count -eq 0) { Wrong "no NVIDIA display device is on this guest's bus: see 'qm config' on the host" }
foreach ($card in $displays) {
    # Config manager error codes: 0 works, 28 has no driver, 43 the driver reported a failure.
    switch ($card.ConfigManagerErrorCode) {
        0 { Ok "$($card.Name) works" }
        28 { Wrong "$($card.Name) has no driver (code 28): install NVIDIA's" }
        43 { Wrong "$($card.Name): code 43. A driver before 465 refuses VMs; otherwise see the host's kernel log for Xid, and power-cycle" }
        default { Wrong "$($card.Name): code $($card.ConfigManagerErrorCode)" }
    }
}
if (-not ($cards | Where-Object { $_.PNPClass -eq 'MEDIA' })) { Note 'no sound function of NVIDIA: give the VM the whole card' }
foreach ($display in Get-CimInstance Win32_VideoController) {
    if ($display.Name -like '*Basic Display*') { Note 'Microsoft Basic Display Adapter: that display has no driver of its own' }
    if ($display.Name -like 'NVIDIA*') { Ok "$($display.Name), driver $($display.DriverVersion)" }
}
$smi = Get-Command nvidia-smi -ErrorAction SilentlyContinue
if ($smi) {
    $said = & $smi.Source '--query-gpu=name,memory.total,driver_version,pcie.link.width.current' '--format=csv,noheader' 2>&1
    if ($LASTEXITCODE -eq 0) { Ok "nvidia-smi: $said" } else { Wrong "nvidia-smi: $said" }
} else { Note 'there is no nvidia-smi' }
$events = @(Get-WinEvent -FilterHashtable @{ LogName = 'System'; ProviderName = 'nvlddmkm' } -MaxEvents 5 -ErrorAction SilentlyContinue)
if ($events.Count -gt 0) { Note "the driver has written events to the system log, the last at $($events[0].TimeCreated)" }
exit $wrong
