# Completion of vbk's arguments for fish, made by `vbk generate completion fish`.

function __vbk_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token --cut-at-cursor)
    set -l words (string replace --regex '^~/' "$HOME/" -- $words)
    $words[1] __complete (math (count $words) - 1) -- $words 2>/dev/null
end

complete --command vbk --no-files --keep-order --arguments '(__vbk_complete)'
