from onecopy.cli.main import main

main()
