from medsr_monai.cli import main

main()
